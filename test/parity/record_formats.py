"""Records what diffusers makes of weights that this project writes: a UNet file, a LoRA, a single-file checkpoint.

    python record_formats.py

Writes the files for tiny-sdxl (formats.ts) into a temporary folder, loads them in diffusers, and records formats.json
(the calls, in our names) and formats.safetensors as record_pipeline.py does. Stops when diffusers does not read out of
the checkpoint what went into it. Needs peft beside the packages of record_models.py.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from record_models import GOLDENS, save
from record_pipeline import generate
from safetensors.torch import load_file

TINY = GOLDENS / "tiny-sdxl"
ROOT = Path(__file__).parents[2]
FEW = {"guidance": 1, "steps": 4, "schedule": "trailing", "predictionType": "epsilon"}
CALLS = {
    "unet": {**FEW, "prompt": "a red lighthouse", "seed": 1},
    "x0": {**FEW, "prompt": "a blue bird", "seed": 2, "steps": 1, "predictionType": "sample"},
    "lora": {**FEW, "prompt": "the fish swims", "seed": 3, "strength": 0.7},
    "lcm": {**FEW, "prompt": "a boat at dusk", "seed": 4, "strength": 1, "sampler": "lcm", "batch": 2},
}


def write_files(folder):
    code = f'import("./test/parity/formats.ts").then((m) => m.writeFormats({json.dumps(str(folder))}))'
    subprocess.run(["npx", "tsx", "--eval", code], cwd=ROOT, check=True)


def pipeline(name, call, folder):
    pipe = StableDiffusionXLPipeline.from_pretrained(TINY)
    file = folder / f"{name}.safetensors"
    if "strength" in call:
        pipe.load_lora_weights(folder, weight_name=file.name)
        pipe.fuse_lora(lora_scale=call["strength"])
        modules = sum(key.endswith(".alpha") for key in load_file(file))
        assert sum(hasattr(m, "lora_A") for m in pipe.unet.modules()) == modules, "LoRA modules were left out"
    else:
        pipe.unet.load_state_dict(load_file(file), strict=True)
    return pipe


def below(state, prefix):
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def check_same(name, converted, expected):
    """Equal keys and tensors; buffers of positions do not count."""
    keys = [{k for k in d if "position_ids" not in k} for d in (converted, expected)]
    assert keys[0] == keys[1], f"{name}: {sorted(keys[0] ^ keys[1])[:8]}"
    for k in keys[0]:
        assert torch.equal(converted[k], expected[k]), f"{name}: {k} differs"
    print(f"checkpoint: {len(keys[0])} tensors of the {name} are those of diffusers")


def check_checkpoint(folder):
    state = load_file(folder / "checkpoint.safetensors")
    pipe = StableDiffusionXLPipeline.from_pretrained(TINY)
    unet = convert_ldm_unet_checkpoint(dict(state), dict(pipe.unet.config))
    check_same("UNet", unet, load_file(folder / "unet.safetensors"))
    vae = convert_ldm_vae_checkpoint(dict(state), dict(pipe.vae.config))
    check_same("VAE", vae, pipe.vae.state_dict())
    first = below(state, "conditioner.embedders.0.transformer.")
    check_same("first text encoder", first, pipe.text_encoder.state_dict())
    second = convert_open_clip_checkpoint(pipe.text_encoder_2, dict(state), prefix="conditioner.embedders.1.model.")
    check_same("second text encoder", second, pipe.text_encoder_2.state_dict())


def record_formats():
    tensors = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        check_checkpoint(folder)
        for name, call in CALLS.items():
            latents, pictures = generate(pipeline(name, call, folder), call)
            tensors |= {f"latents.{name}": latents, f"pictures.{name}": pictures}
            print(f"{name}: {tuple(pictures.shape)}, latents to {latents.abs().max():.1f}")
        single = StableDiffusionXLPipeline.from_single_file(
            folder / "checkpoint.safetensors", config=str(TINY), local_files_only=True
        )
        same = torch.equal(generate(single, CALLS["unet"])[0], tensors["latents.unet"])
        assert same, "the checkpoint makes another picture than its UNet on the folder"
    save("formats", None, tensors)
    (GOLDENS / "formats.json").write_text(json.dumps(CALLS, indent=2) + "\n")


if __name__ == "__main__":
    record_formats()
