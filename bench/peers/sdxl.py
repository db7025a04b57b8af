"""Other engines on the SDXL folder that `npm run bench sdxl` generates: load, UNet step, picture in four steps, peak memory.

    pip install torch diffusers transformers accelerate      # --engine torch-fp32, torch-bf16
    pip install optimum-intel[openvino]                      # --engine openvino (converts once, beside the folder)
    pip install stable-diffusion-cpp-python                  # --engine sd-cpp, sd-cpp-q8 (needs --checkpoint)
    python bench/peers/sdxl.py FOLDER [--engine NAME ...] [--sides 512 1024] [--threads N]

Each engine runs in a process of its own. One that is not installed is skipped with a sentence. stable-diffusion.cpp
reads single files: `--checkpoint` names one (fewstep's `saveCheckpoint` writes it).
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
    "openvino": ["openvino", "optimum.intel"],
    "sd-cpp": ["stable_diffusion_cpp"],
    "sd-cpp-q8": ["stable_diffusion_cpp"],
}


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def load_torch(args, dtype: str):
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.set_num_threads(args.threads)
    kind = {"torch-fp32": torch.float32, "torch-bf16": torch.bfloat16}[dtype]
    pipe = StableDiffusionXLPipeline.from_pretrained(args.folder, torch_dtype=kind)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    return pipe


def load_openvino(args):
    from optimum.intel import OVStableDiffusionXLPipeline

    converted = args.folder.rstrip("/") + "-openvino"
    if not os.path.exists(converted):
        OVStableDiffusionXLPipeline.from_pretrained(args.folder, export=True, compile=False).save_pretrained(converted)
    config = {"INFERENCE_NUM_THREADS": str(args.threads)}
    return OVStableDiffusionXLPipeline.from_pretrained(converted, ov_config=config)


def measure_pipeline(args, name: str) -> None:
    began = time.perf_counter()
    pipe = load_openvino(args) if name == "openvino" else load_torch(args, name)
    pipe.set_progress_bar_config(disable=True)
    print(f"{name}: load {time.perf_counter() - began:.2f} s")
    for side in args.sides:
        steps, totals = [], []
        for _ in range(ROUNDS):
            times = []

            def on_step(_pipe, _i, _t, kwargs):
                times.append(time.perf_counter())
                return kwargs

            extra = {} if name == "openvino" else {"callback_on_step_end": on_step}
            began = time.perf_counter()
            pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=1.0, height=side, width=side, **extra)
            totals.append(time.perf_counter() - began)
            steps += [b - a for a, b in zip(times, times[1:])]
        step = f", UNet step {statistics.median(steps):.2f} s" if steps else ""
        print(f"{name}: {side}x{side}, {STEPS} steps {statistics.median(totals[1:]):.2f} s{step}")


def measure_sd_cpp(args, name: str) -> None:
    if not args.checkpoint:
        print(f"{name}: skipped, it reads single files: give one with --checkpoint")
        return
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
            print(f"{name}: skipped, {' and '.join(missing)} is not installed (see the top of this file)")
            continue
        rest = ["--sides", *map(str, args.sides), "--threads", str(args.threads), "--here"]
        if args.checkpoint:
            rest += ["--checkpoint", args.checkpoint]
        done = subprocess.run([sys.executable, __file__, args.folder, "--engine", name, *rest])
        if done.returncode:
            print(f"{name}: failed")


if __name__ == "__main__":
    main()
