"""Records what diffusers' StableDiffusionXLPipeline makes of a tiny random model folder, and of the bundled model.

    python record_pipeline.py [tiny | bundled]    both when none is named

Writes tiny-sdxl (the folder), and for each of both <name>.json (the calls, in our names) and <name>.safetensors:
latents.<call> [B,4,h,w] and pictures.<call> uint8 [B,H,W,3]. The names are pipeline and bundled.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from record_models import GOLDENS, UNET, perturbed, save, text_config
from record_samplers import KINDS, OPTIONS
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.models.clip.tokenization_clip import bytes_to_unicode

CORPUS = "a red lighthouse at dusk, a blue bird on a green tree; the fish swims under the boat's light"
BUNDLED = Path(__file__).parents[2] / "models" / "fewstep"
BUNDLED_CALLS = {
    "apple": {"prompt": "a red apple", "guidance": 4, "steps": 25, "seed": 1},
    "negative": {"prompt": "cat face, noto style", "negativePrompt": "yellow", "guidance": 4, "steps": 8, "seed": 2},
}
CALLS = {  # no "!", which diffusers reads as padding where it is the padding token
    "guided": {"prompt": "A red lighthouse, at dusk.", "guidance": 5, "seed": 3},
    "plain": {"prompt": "the bird's tree 42", "guidance": 1, "seed": 2**33 + 5, "schedule": "trailing"},
    "negative": {
        "prompt": "a fish under the boat",
        "negativePrompt": "blue light",
        "guidance": 5,
        "seed": 11,
        "batch": 2,
        "width": 48,
        "height": 64,
    },
    "ddim": {
        "prompt": "café light " * 12,
        "promptWeighting": "none",  # diffusers cuts it
        "guidance": 3,
        "seed": 4,
        "sampler": "ddim",
    },
    "rescaled": {
        "prompt": "a blue bird",
        "guidance": 7,
        "guidanceRescale": 0.7,
        "seed": 5,
        "batch": 2,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
    },
    "ancestral": {"prompt": "the boat's light", "guidance": 3, "seed": 6, "batch": 2, "sampler": "euler_ancestral"},
    "stream": {
        "prompt": "a fish",
        "guidance": 1,
        "seed": 7,
        "batch": 2,
        "noiseRule": "stream",
        "sampler": "dpmpp_2m_sde",
    },
}


def tiny_tokenizers(folder):
    """Two CLIP tokenizers with a few merges; the second pads with "!" as that of OpenCLIP."""
    letters = list(bytes_to_unicode().values())
    words = [[*word[:-1], word[-1] + "</w>"] for word in CORPUS.replace(",", "").replace(";", "").split()]
    merges = []
    for _ in range(24):
        pairs = Counter(pair for word in words for pair in zip(word, word[1:]))
        best = max(sorted(pairs), key=pairs.get)
        merges.append(best)
        for word in words:
            for i in range(len(word) - 1, 0, -1):
                if tuple(word[i - 1 : i + 1]) == best:
                    word[i - 1 : i + 1] = ["".join(best)]
    tokens = [*letters, *(x + "</w>" for x in letters), *("".join(m) for m in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "vocab.json", folder / "merges.txt"]
    files[0].write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    files[1].write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in merges)]) + "\n")
    tokenizers = [
        CLIPTokenizer(*map(str, files), pad_token=pad, model_max_length=16) for pad in ("<|endoftext|>", "!")
    ]
    for file in files:
        file.unlink()
    return tokenizers


def tiny_pipeline(folder):
    tokenizers = tiny_tokenizers(folder)
    torch.manual_seed(10)
    tokens = dict(vocab_size=len(tokenizers[0]), bos_token_id=tokenizers[0].bos_token_id)
    # The end token 2 is what SDXL's configs say; transformers then takes the largest id.
    text = dict(**tokens, eos_token_id=2, max_position_embeddings=16, num_hidden_layers=2)
    levels = dict(down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3)
    unet = {**UNET, "sample_size": 16, "layers_per_block": 1, "cross_attention_dim": 16 + 20}
    return StableDiffusionXLPipeline(
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        text_encoder=perturbed(CLIPTextModel(text_config(**text, num_attention_heads=2)), gain=3),
        text_encoder_2=perturbed(
            CLIPTextModelWithProjection(
                text_config(**text, hidden_size=20, num_attention_heads=4, hidden_act="gelu")
            ),
            gain=3,
        ),
        unet=perturbed(UNet2DConditionModel(**unet), gain=1.5),
        vae=perturbed(
            AutoencoderKL(
                **levels,
                block_out_channels=[4, 4, 8],
                norm_num_groups=2,
                sample_size=64,
                scaling_factor=0.13025,
            ),
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        add_watermarker=False,
    )


def generate(pipeline, call):
    """Latents [B,4,h,w] and pictures [B,H,W,3]."""
    sampler = call.get("sampler", "euler")
    changes = dict(OPTIONS.get(sampler, {}))  # of these, the config of Euler holds none
    if call.get("schedule") == "karras":
        changes["use_karras_sigmas"] = True
    elif "schedule" in call:
        changes["timestep_spacing"] = call["schedule"]
    if "predictionType" in call:
        changes["prediction_type"] = call["predictionType"]
    pipeline.scheduler = KINDS[sampler].from_config(pipeline.scheduler.config, **changes)
    batch = call.get("batch", 1)
    stream = call.get("noiseRule") == "stream"

    def run(output_type):
        generators = [torch.Generator().manual_seed(call["seed"] + i) for i in range(batch)]
        return pipeline(
            prompt=call["prompt"],
            negative_prompt=call.get("negativePrompt"),
            guidance_scale=call["guidance"],
            guidance_rescale=call.get("guidanceRescale", 0),
            num_inference_steps=call["steps"],
            num_images_per_prompt=batch,
            width=call.get("width"),
            height=call.get("height"),
            generator=generators[0] if stream else generators,
            output_type=output_type,
        ).images

    return run("latent"), torch.from_numpy((run("np") * 255).round()).to(torch.uint8)


def record(name, folder, calls):
    tensors = {}
    for call_name, call in calls.items():
        latents, pictures = generate(StableDiffusionXLPipeline.from_pretrained(folder), call)
        tensors |= {f"latents.{call_name}": latents, f"pictures.{call_name}": pictures}
        deviation = pictures.float().std()
        print(f"{call_name}: {tuple(pictures.shape)}, latents to {latents.abs().max():.1f}, std {deviation:.0f}")
    save(name, None, tensors)
    (GOLDENS / f"{name}.json").write_text(json.dumps(calls, indent=2) + "\n")


if __name__ == "__main__":
    parts = sys.argv[1:] or ["tiny", "bundled"]
    if "tiny" in parts:
        folder = GOLDENS / "tiny-sdxl"
        tiny_pipeline(folder).save_pretrained(folder)
        record("pipeline", folder, {name: {"steps": 4, **call} for name, call in CALLS.items()})
        for path in folder.rglob("*.safetensors"):
            path.chmod(0o644)
    if "bundled" in parts:
        record("bundled", BUNDLED, BUNDLED_CALLS)
