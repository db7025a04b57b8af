"""Records what diffusers makes of a single file that says nothing of how its networks are built, and SDXL's names.

    python record_single.py

Writes single.json: digests of names and shapes of SDXL base's networks, in diffusers layout (read off the modules) and in
the single file's (what diffusers' own conversion turns into these), the calls, and the ids of texts under CLIP's own
vocabulary; and single.safetensors as record_pipeline.py does. Stops when the folder that this project converts
makes another picture than the file. The vocabulary is that of open_clip_torch, which needs no dependencies for it.
"""

import gzip
import hashlib
import json
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from record_full import SDXL, module
from record_models import GOLDENS, save
from record_pipeline import generate
from record_tokenizer import TEXTS
from transformers import CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

ROOT = Path(__file__).parents[2]
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}
SMALL = {
    "unet": {
        "block_out_channels": [64, 128],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2],
        "attention_head_dim": [1, 2],
        "cross_attention_dim": 64 + 128,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 96 + 6 * 8,
        "layers_per_block": 1,
    },
    "vae": {"block_out_channels": [32, 64], "layers_per_block": 1, "sample_size": 1024},
    "text_encoder": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "projection_dim": 64,
    },
    "text_encoder_2": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 96,
    },
}
CALLS = {
    "guided": {"prompt": "A photo of a red lighthouse at dusk, 8k!", "guidance": 5, "steps": 4, "seed": 3},
    "plain": {"prompt": "café, two birds & the sea", "guidance": 1, "steps": 2, "seed": 4, "schedule": "trailing"},
}


def modules(sizes):
    return {name: module(name, sizes) for name in sizes}


def digest(shapes):
    lines = sorted(f"{key} {list(shape)}" for key, shape in shapes.items())
    return {"tensors": len(lines), "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def check_keys(folder):
    """diffusers' conversion of the names that we give the tensors of SDXL base in a single file."""
    keys = json.loads((folder / "keys.json").read_text())
    with torch.device("meta"):
        reference = modules(SDXL)
        state = {k: torch.empty(v["shape"]) for part in keys.values() for k, v in part["theirs"].items()}
    converted = {
        "unet": convert_ldm_unet_checkpoint(dict(state), dict(reference["unet"].config)),
        "vae": convert_ldm_vae_checkpoint(dict(state), dict(reference["vae"].config)),
        "text_encoder_2": convert_open_clip_checkpoint(
            reference["text_encoder_2"], dict(state), prefix=PREFIXES["text_encoder_2"]
        ),
        "text_encoder": {k.removeprefix(p): v for p in [PREFIXES["text_encoder"]] for k, v in state.items() if p in k},
    }
    digests = {}
    for name, module in reference.items():
        shapes = {k: tuple(v.shape) for k, v in module.state_dict().items() if "position_ids" not in k}
        ours = {k: tuple(v.shape) for k, v in converted[name].items()}
        assert ours == shapes, f"{name}: {sorted(set(ours.items()) ^ set(shapes.items()))[:8]}"
        theirs = {k: v["shape"] for k, v in keys[name]["theirs"].items()}
        digests[name] = {"diffusers": digest(shapes), "checkpoint": digest(theirs)}
        print(f"{name}: {len(shapes)} tensors, {len(theirs)} in a single file")
    return digests


def tokenizers(folder):
    """CLIP's tokenizers, padded as SDXL's two are."""
    source = Path(find_spec("open_clip").origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(source.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(x + "</w>" for x in letters), *(m.replace(" ", "") for m in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    files = [str(folder / "vocab.json"), str(folder / "merges.txt")]
    return [CLIPTokenizer(*files, pad_token=pad, model_max_length=77) for pad in ("<|endoftext|>", "!")]


def write_files(folder):
    code = f'import("./test/parity/single.ts").then((m) => m.writeSingle({json.dumps(str(folder))}))'
    subprocess.run(["npx", "tsx", "--eval", code], cwd=ROOT, check=True)


def record_single():
    assert not find_spec("ftfy"), "with ftfy installed, transformers cleans texts another way"
    tensors = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        digests = check_keys(folder)
        both = tokenizers(folder)
        ids = [[t(text, add_special_tokens=False).input_ids for text in TEXTS] for t in both]
        scheduler = EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        )
        named = {"tokenizer": both[0], "tokenizer_2": both[1], "scheduler": scheduler}
        StableDiffusionXLPipeline(**modules(SMALL), **named).save_pretrained(folder / "config")
        single = StableDiffusionXLPipeline.from_single_file(
            folder / "small.safetensors", config=str(folder / "config"), local_files_only=True
        )
        for call_name, call in CALLS.items():
            call = {**call, "width": 32, "height": 48}
            CALLS[call_name] = call
            latents, pictures = generate(single, call)
            converted = StableDiffusionXLPipeline.from_pretrained(folder / "small")
            assert torch.equal(generate(converted, call)[0], latents), "the converted folder makes another picture"
            tensors |= {f"latents.{call_name}": latents, f"pictures.{call_name}": pictures}
            print(f"{call_name}: latents to {latents.abs().max():.1f}, std {pictures.float().std():.0f}")
    save("single", None, tensors)
    tokens = [{"text": text, "ids": a, "ids_2": b} for text, a, b in zip(TEXTS, *ids)]
    lines = ",\n".join(map(json.dumps, tokens))
    rest = json.dumps({"keys": digests, "calls": CALLS}, indent=2)
    (GOLDENS / "single.json").write_text(f'{rest[:-2]},\n  "tokens": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    record_single()
