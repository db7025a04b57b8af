"""Writes an SDXL with generated weights, and records what diffusers and transformers compute with it in float32.

    python record_full.py [--size full | mid | small] [--folder FOLDER] [model | text | unet | vae | pictures | float32 ...]

All parts when none is named; `text` goes before `unet`, which reads what it recorded. FOLDER is a model folder in
diffusers layout, by default sdxl-generated-SIZE in fewstep's cache folder. `full` has the names and shapes of SDXL base in
half precision, `mid` its widths with few layers, `small` its depth with a tenth of its widths. `float32` writes the weights
once more, as float32 below FOLDER/float32 (14 GB), where `npm run parity` then takes them: they take half the memory to load.

Values are integers of Philox (Salmon et al. 2011), keyed by the tensor's name, so every machine writes the same bytes:
the SHA-256 of each file is compared with goldens/full.json. Goldens lie below FOLDER/goldens, a <part>.safetensors each and
calls.json; torch rounds differently from machine to machine, so these have no hashes. `npm run parity FOLDER` compares.
One network is in memory at a time, at full size at most the UNet's 10.3 GB.
"""

import argparse
import hashlib
import json
import math
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from record_models import GOLDENS, predict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

ROOT = Path(__file__).parents[2]
HASHES = GOLDENS / "full.json"
PROMPTS = ["a photo of an astronaut riding a horse", "A café by the sea at dusk, oil painting, 42 boats"]
CALLS = {
    "four": {"prompt": PROMPTS[0], "steps": 4, "seed": 1, "predictionType": "epsilon"},
    "one": {"prompt": PROMPTS[1], "steps": 1, "seed": 2, "predictionType": "sample"},
}
SIDE, LARGE = 64, 128  # of latents: 512 and 1024 pixels
UNET_PARAMETERS = 2_567_463_684  # of SDXL base


def text(width, layers, heads):
    sizes = dict(hidden_size=width, intermediate_size=4 * width, projection_dim=width)
    return dict(**sizes, num_hidden_layers=layers, num_attention_heads=heads, eos_token_id=2)


SDXL = {
    "unet": {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "layers_per_block": 2,
    },
    "vae": {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 1024},
    "text_encoder": text(768, 12, 12),
    "text_encoder_2": text(1280, 32, 20),
}
SIZES = {
    "full": SDXL,
    "mid": {
        "unet": {
            **SDXL["unet"],
            "block_out_channels": [320, 640],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 1],
            "attention_head_dim": [5, 10],
            "layers_per_block": 1,
        },
        "vae": {**SDXL["vae"], "block_out_channels": [32, 64, 64, 64], "layers_per_block": 1},
        "text_encoder": text(768, 2, 12),
        "text_encoder_2": text(1280, 2, 20),
    },
    "small": {
        "unet": {
            **SDXL["unet"],
            "block_out_channels": [32, 64, 128],
            "attention_head_dim": [1, 2, 4],
            "cross_attention_dim": 64 + 128,
            "projection_class_embeddings_input_dim": 128 + 6 * 256,
        },
        "vae": {**SDXL["vae"], "block_out_channels": [32, 64, 128, 128]},
        "text_encoder": text(64, 12, 2),
        "text_encoder_2": text(128, 32, 4),
    },
}


def module(name, sizes):
    """A network, with the weights that its class starts with."""
    config = sizes[name]
    if name == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(hidden_act="quick_gelu", **config))
    if name == "text_encoder_2":
        return CLIPTextModelWithProjection(CLIPTextConfig(hidden_act="gelu", **config))
    if name == "unet":
        added = dict(addition_embed_type="text_time", use_linear_projection=True)
        return UNet2DConditionModel(**added, sample_size=128, **config)
    levels = len(config["block_out_channels"])
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=4,
        scaling_factor=0.13025,
        **config,
    )


# --- the model ------------------------------------------------------------------------------------

GAINS = {  # of matrices, over one that keeps the deviation of what it multiplies
    r"\b(to_q|to_k|q_proj|k_proj)\.": 1.5,  # attention that looks at something
    r"(time|add)_embedding\.|time_emb_proj\.": 2,  # SiLU makes small values smaller
    r"decoder\.conv_out\.": 0.7,  # pictures within [-1, 1], but for a few pixels
    r"^conv_out\.": 1.6,  # predictions of unit deviation
}
BYTES_DEVIATION = math.sqrt(4 * (256**2 - 1) / 12)  # of the sum of four random bytes
PIECE = 2**20


def scale_of(name, shape):
    if len(shape) < 2:
        return 0.1  # biases, and norms around one
    if "embeddings." in name:
        return 0.3
    gain = next((gain for pattern, gain in GAINS.items() if re.search(pattern, name)), 1)
    return gain / math.sqrt(math.prod(shape[1:]))


def pieces(network, name, shape):
    """The bytes of a float16 tensor whose values are sums of four random bytes, nearly normal."""
    key = hashlib.sha256(f"{network}.{name}".encode()).digest()[:16]
    generator = np.random.Philox(key=int.from_bytes(key, "little"))
    scale = np.float32(scale_of(name, shape) / BYTES_DEVIATION)
    offset = np.float32(1 if len(shape) < 2 and re.search(r"norm\w*\.weight$", name) else 0)
    total = math.prod(shape)
    for done in range(0, total, 2 * PIECE):
        raw = generator.random_raw(min(PIECE, (total - done + 1) // 2))
        pairs = (raw & 0x00FF00FF00FF00FF) + (raw >> 8 & 0x00FF00FF00FF00FF)
        halves = pairs.astype("<u8").view("<u4")
        sums = (halves & 0xFFFF) + (halves >> 16)
        values = (sums[: total - done].astype(np.float32) - np.float32(510)) * scale + offset
        yield values.astype("<f2").tobytes()


def weight_pieces(network, shapes):
    """The bytes of a safetensors file."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-(8 + len(head)) % 64)
    yield len(head).to_bytes(8, "little") + head
    for name, shape in shapes.items():
        yield from pieces(network, name, shape)


def weights_file(folder, network):
    stem = "model" if network.startswith("text") else "diffusion_pytorch_model"
    return folder / network / f"{stem}.safetensors"


def true_name(network, key):
    """transformers 5 leaves out the first part of the names that SDXL's files have."""
    return f"text_model.{key}" if network == "text_encoder" and not key.startswith("text_model.") else key


def write_tokenizers(folder):
    """CLIP's own vocabulary, as fewstep has it."""
    code = """
        Promise.all([import("./src/pipelines/index.ts"), import("./src/pipelines/vocabulary.ts")]).then(
          async ([{ saveTokenizer }, { sdxlTokenizers }]) => {
            const [first, second] = await sdxlTokenizers();
            await saveTokenizer(`${process.env.FOLDER}/tokenizer`, first);
            await saveTokenizer(`${process.env.FOLDER}/tokenizer_2`, second);
          });"""
    env = {**os.environ, "FOLDER": str(folder.resolve())}
    subprocess.run(["npx", "tsx", "--eval", code], cwd=ROOT, env=env, check=True)


def write_configs(folder, networks):
    for name, network in networks.items():
        if name.startswith("text"):
            network.config.architectures = [type(network).__name__]
            network.config.save_pretrained(folder / name)
        else:
            network.save_config(folder / name)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    scheduler.save_pretrained(folder / "scheduler")
    both = {name: CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")}
    StableDiffusionXLPipeline(**networks, **both, scheduler=scheduler, add_watermarker=False).save_config(folder)


def write_model(folder, size):
    """Files that are there and right stay."""
    known = json.loads(HASHES.read_text()) if HASHES.exists() else {}
    write_tokenizers(folder)
    with torch.device("meta"):
        networks = {name: module(name, SIZES[size]) for name in SIZES[size]}
    write_configs(folder, networks)
    found = {}
    for name in ("tokenizer", "tokenizer_2"):
        for file in ("vocab.json", "merges.txt"):
            found[f"{name}/{file}"] = sha256((folder / name / file).read_bytes())
    for name, network in networks.items():
        state = {true_name(name, key): t for key, t in network.state_dict().items()}
        shapes = {key: list(state[key].shape) for key in sorted(state)}
        parameters = sum(map(math.prod, shapes.values()))
        assert (size, name) != ("full", "unet") or parameters == UNET_PARAMETERS
        path = weights_file(folder, name)
        key = str(path.relative_to(folder))
        if path.exists():
            with path.open("rb") as file:
                found[key] = hashlib.file_digest(file, "sha256").hexdigest()
        if not path.exists() or found[key] != known.get(size, {}).get(key):
            found[key] = write_hashed(path, weight_pieces(name, shapes))
        print(f"{name}: {parameters:,} parameters, {path.stat().st_size:,} bytes, sha256 {found[key][:12]}")
    if size not in known:
        HASHES.write_text(json.dumps({**known, size: found}, indent=2) + "\n")
        print(f"{HASHES.name} had no hashes for {size}; now it has these")
    elif found != known[size]:
        wrong = [name for name in found if found[name] != known[size].get(name)]
        raise SystemExit(f"{', '.join(wrong)}: other bytes than {HASHES.name} says for {size}")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def write_hashed(path, parts):
    """Writes a file that appears whole or not at all, and gives its SHA-256."""
    digest, temporary = hashlib.sha256(), path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
    temporary.rename(path)
    return digest.hexdigest()


# --- what it computes -----------------------------------------------------------------------------


def load(folder, name, size):
    """A network in float32. Tensor by tensor, so that the file does not stay in memory beside it."""
    with torch.device("cpu" if name.startswith("text") else "meta"):  # transformers' buffers are no weights
        network = module(name, SIZES[size])
    path, state = weights_file(folder, name), {}
    for key in network.state_dict():
        with safe_open(path, "pt") as file:  # a new one lets go of what was read
            state[key] = file.get_tensor(true_name(name, key)).float()
    network.load_state_dict(state, assign=True)
    return network.eval()


def save(folder, name, tensors):
    (folder / "goldens").mkdir(exist_ok=True)
    for key, t in tensors.items():
        assert t.dtype == torch.uint8 or t.isfinite().all(), f"{key}: values that are no numbers"
        print(f"{name}: {key} {list(t.shape)}, deviation {t.float().std(correction=0):.3g}")
    flat = {key: t.detach().contiguous().clone() for key, t in tensors.items()}
    save_file(flat, folder / "goldens" / f"{name}.safetensors")


def read(folder, name):
    return load_file(folder / "goldens" / f"{name}.safetensors")


def record_text(folder, size):
    """hidden_1, hidden_2 [B,T,D] of the last layer but one, pooled_1 and pooled_2 [B,P], of PROMPTS."""
    tensors = {}
    for i, suffix in enumerate(("", "_2"), 1):
        tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
        ids = tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
        out = load(folder, f"text_encoder{suffix}", size)(ids, output_hidden_states=True)
        tensors[f"hidden_{i}"] = out.hidden_states[-2]
        tensors[f"pooled_{i}"] = out.text_embeds if suffix else out.pooler_output
    save(folder, "text", tensors)


def prompt(folder, i):
    """What the UNet is told of a prompt: hidden [1,T,D] and pooled [1,P]."""
    recorded = read(folder, "text")
    hidden = torch.cat([recorded["hidden_1"], recorded["hidden_2"]], dim=2)
    return {"hidden": hidden[i : i + 1], "pooled": recorded["pooled_2"][i : i + 1]}


def record_unet(folder, size):
    """sample, timestep, hidden, pooled, time_ids and prediction at two sizes; that each input counts is checked."""
    unet, tensors = load(folder, "unet", size), {}
    generator = torch.Generator().manual_seed(3)
    for side in (SIDE, LARGE):
        pixels = 8.0 * side
        inputs = {
            "sample": torch.randn(1, 4, side, side, generator=generator),
            "timestep": torch.tensor([601.0]),
            **prompt(folder, 0),
            "time_ids": torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]]),
        }
        prediction = predict(unet, inputs)
        tensors |= {f"{name}.{side}": t for name, t in {**inputs, "prediction": prediction}.items()}
        if side != SIDE:
            continue
        changes = {
            "prompt": prompt(folder, 1),
            "timestep": {"timestep": torch.tensor([301.0])},
            "sample": {"sample": torch.randn(inputs["sample"].shape, generator=generator)},
            "sizes": {"time_ids": torch.tensor([[256.0, 320, 64, 0, pixels, pixels]])},
        }
        for what, change in changes.items():
            apart = (predict(unet, {**inputs, **change}) - prediction).std() / prediction.std()
            print(f"unet: another {what} changes the prediction by {100 * apart:.1f} %")
            assert apart > 0.01, f"the prediction hardly depends on the {what}"
    save(folder, "unet", tensors)
    exact = tensors[f"prediction.{SIDE}"]
    halves = {name: tensors[f"{name}.{SIDE}"].bfloat16() for name in ("sample", "hidden", "pooled", "time_ids")}
    error = predict(unet.bfloat16(), {**halves, "timestep": inputs["timestep"]}).float() - exact
    print(f"unet: in bfloat16 {10 * math.log10(exact.square().sum() / error.square().sum()):.1f} dB at side {SIDE}")


def record_vae(folder, size):
    """pictures and their encoded moments, latents (not scaled) and decoded pictures."""
    vae, generator = load(folder, "vae", size), torch.Generator().manual_seed(4)
    pictures = torch.rand(1, 3, 8 * SIDE, 8 * SIDE, generator=generator) * 2 - 1
    latents = torch.randn(1, 4, SIDE, SIDE, generator=generator) / vae.config.scaling_factor
    encoded = vae.encode(pictures).latent_dist.parameters
    decoded = vae.decode(latents).sample
    save(folder, "vae", {"pictures": pictures, "encoded": encoded, "latents": latents, "decoded": decoded})


def record_pictures(folder, size):
    """latents.<call> [1,4,h,w] and pictures.<call> uint8 [1,H,W,3]: Euler, trailing, without guidance."""
    pipeline = StableDiffusionXLPipeline(
        unet=load(folder, "unet", size),
        vae=load(folder, "vae", size),
        scheduler=EulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        **dict.fromkeys(["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]),
        add_watermarker=False,
    )
    tensors = {}
    for name, call in CALLS.items():
        changes = {"prediction_type": call["predictionType"], "timestep_spacing": "trailing"}
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, **changes)
        told = prompt(folder, PROMPTS.index(call["prompt"]))
        tensors[f"latents.{name}"] = pipeline(
            prompt_embeds=told["hidden"],
            pooled_prompt_embeds=told["pooled"],
            guidance_scale=1,
            num_inference_steps=call["steps"],
            generator=torch.Generator().manual_seed(call["seed"]),
            width=8 * SIDE,
            height=8 * SIDE,
            output_type="latent",
        ).images
    pipeline.unet = None
    for name in CALLS:
        planes = pipeline.vae.decode(tensors[f"latents.{name}"] / pipeline.vae.config.scaling_factor).sample
        picture = pipeline.image_processor.postprocess(planes, output_type="np")
        tensors[f"pictures.{name}"] = torch.from_numpy((picture * 255).round()).to(torch.uint8)
    save(folder, "pictures", tensors)


def write_float32(folder, size):
    for name in SIZES[size]:
        state = {true_name(name, key): t for key, t in load(folder, name, size).state_dict().items()}
        path = weights_file(folder / "float32", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, path, {"format": "pt"})
        shutil.copy(folder / name / "config.json", path.parent)
    for name in ("tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(folder / name, folder / "float32" / name, dirs_exist_ok=True)
    shutil.copy(folder / "model_index.json", folder / "float32")


PARTS = {
    "model": write_model,
    "text": record_text,
    "unet": record_unet,
    "vae": record_vae,
    "pictures": record_pictures,
    "float32": write_float32,
}


def cache_folder():
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FEWSTEP_CACHE") or Path(cache) / "fewstep")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[], metavar="PART")
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    folder = args.folder or cache_folder() / f"sdxl-generated-{args.size}"
    torch.set_num_threads(os.cpu_count())  # record_models takes one
    with torch.no_grad():
        for part in args.parts or PARTS:
            PARTS[part](folder, args.size)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"{part}: done, peak memory so far {peak:.2f} GB")
    if folder.joinpath("goldens").exists():
        calls = {"prompts": PROMPTS, "side": SIDE, "large": LARGE, "calls": CALLS}
        (folder / "goldens" / "calls.json").write_text(json.dumps(calls, indent=2) + "\n")
    print(f"compare: npm run parity {folder}")


if __name__ == "__main__":
    main()
