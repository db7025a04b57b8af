"""Other engines on an SDXL folder, such as test/parity/record_full.py writes: load, UNet step, picture in four steps, peak memory.

    pip install torch diffusers transformers accelerate      # --engine torch-fp32, torch-bf16
    pip install "optimum-intel[openvino,diffusers]"          # --engine openvino, openvino-int8 (convert once, beside the folder)
    pip install stable-diffusion-cpp-python                  # --engine sd-cpp, sd-cpp-q8 (need --checkpoint; it builds from source)
    python bench/peers/sdxl.py FOLDER [--engine NAME ...] [--sides 512 1024] [--threads N]

Each engine runs in a process of its own. One that is not installed is skipped with a sentence. `openvino` has weights in
half precision, `openvino-int8` in int8, which is what optimum-intel takes for networks of this size when it is not told
otherwise. stable-diffusion.cpp reads single files: `--checkpoint` names one (`fewstep convert FOLDER FILE.safetensors`).
"""

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import time

PROMPT = "a photo of an astronaut riding a horse"
STEPS, ROUNDS = 4, 3
NEEDS = {
    "torch-fp32": ["torch", "diffusers", "transformers"],
    "torch-bf16": ["torch", "diffusers", "transformers"],
    "openvino": ["openvino", "optimum.intel", "diffusers"],
    "openvino-int8": ["openvino", "optimum.intel", "diffusers"],
    "sd-cpp": ["stable_diffusion_cpp"],
    "sd-cpp-q8": ["stable_diffusion_cpp"],
}


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def load_torch(args, name: str):
    import torch
    from diffusers import StableDiffusionXLPipeline

    torch.set_num_threads(args.threads)
    kind = {"torch-fp32": torch.float32, "torch-bf16": torch.bfloat16}[name]
    return StableDiffusionXLPipeline.from_pretrained(args.folder, torch_dtype=kind)


def converted(args, name: str) -> str:
    return f"{args.folder.rstrip('/')}-{name}"


def convert_openvino(args, name: str) -> None:
    """In a process of its own, whose memory does not count."""
    if os.path.exists(converted(args, name)):
        return
    weights = "int8" if name == "openvino-int8" else "fp16"
    command = ["optimum-cli", "export", "openvino", "--model", args.folder, "--task", "text-to-image"]
    subprocess.run([*command, "--weight-format", weights, converted(args, name)], check=True)


def load_openvino(args, name: str):
    from optimum.intel import OVStableDiffusionXLPipeline

    config = {"INFERENCE_NUM_THREADS": str(args.threads)}
    return OVStableDiffusionXLPipeline.from_pretrained(converted(args, name), ov_config=config)


def measure_pipeline(args, name: str) -> None:
    from diffusers import EulerDiscreteScheduler

    began = time.perf_counter()
    pipe = load_openvino(args, name) if name.startswith("openvino") else load_torch(args, name)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)
    print(f"{name}: load {time.perf_counter() - began:.2f} s")
    for side in args.sides:
        steps, totals = [], []
        for _ in range(ROUNDS):
            times = []

            def on_step(_pipe, _i, _t, kwargs):
                times.append(time.perf_counter())
                return kwargs

            size = {"height": side, "width": side}
            began = time.perf_counter()
            pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=1.0, **size, callback_on_step_end=on_step)
            totals.append(time.perf_counter() - began)
            steps.append([b - a for a, b in zip(times, times[1:])])
        step = statistics.median(sum(steps[1:], []))  # the first round warms up
        print(f"{name}: {side}x{side}, {STEPS} steps {statistics.median(totals[1:]):.2f} s, UNet step {step:.2f} s")


def measure_sd_cpp(args, name: str) -> None:
    from stable_diffusion_cpp import StableDiffusion

    began = time.perf_counter()
    options = {"wtype": "q8_0"} if name == "sd-cpp-q8" else {}
    engine = StableDiffusion(model_path=args.checkpoint, n_threads=args.threads, verbose=False, **options)
    print(f"{name}: load {time.perf_counter() - began:.2f} s")
    for side in args.sides:
        totals = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            engine.generate_image(
                prompt=PROMPT, width=side, height=side, sample_steps=STEPS, cfg_scale=1.0, sample_method="euler"
            )
            totals.append(time.perf_counter() - began)
        print(f"{name}: {side}x{side}, {STEPS} steps {statistics.median(totals[1:]):.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--engine", nargs="+", choices=list(NEEDS), default=list(NEEDS))
    parser.add_argument("--checkpoint")
    parser.add_argument("--sides", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        [name] = args.engine
        (measure_sd_cpp if name.startswith("sd-cpp") else measure_pipeline)(args, name)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{name}: peak memory {peak / 1e6:.2f} GB")
        return
    for name in args.engine:
        missing = [module for module in NEEDS[name] if not installed(module)]
        if missing:
            print(f"{name}: skipped, not installed: {', '.join(missing)} (see the top of this file)")
            continue
        if name.startswith("sd-cpp") and not args.checkpoint:
            print(f"{name}: skipped, it reads single files: give one with --checkpoint")
            continue
        rest = ["--sides", *map(str, args.sides), "--threads", str(args.threads), "--here"]
        if args.checkpoint:
            rest += ["--checkpoint", args.checkpoint]
        try:
            if name.startswith("openvino"):
                convert_openvino(args, name)
            subprocess.run([sys.executable, __file__, args.folder, "--engine", name, *rest], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{name}: failed, {error}")


if __name__ == "__main__":
    main()
