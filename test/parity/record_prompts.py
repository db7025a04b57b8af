"""
Records what weights in prompts, long prompts, skipped layers, told sizes and tiles do to the tiny model folder.

    python record_prompts.py    after record_pipeline.py, whose folder tiny-sdxl it loads

Writes prompts.json, the calls in our names, and prompts.safetensors: hidden.<call> [1,T,D] and pooled.<call> [1,P] of
the prompt, latents.<call> [1,4,h,w] of the whole call, and tiles.latents [1,4,h,w], tiles.picture [1,3,H,W].

diffusers reads no weights and no long prompts. Here the texts of one weight are written out by hand, and the formulas
are those of stable-diffusion-webui (modules/sd_hijack_clip.py, sd_emphasis.py: multiply, restore the mean of the chunk;
a full chunk ends after a comma among its last 20 tokens) and ComfyUI (comfy/sd1_clip.py: from the empty prompt's
encoding to the prompt's; texts below 8 tokens stay whole). All else is diffusers.
"""

import json

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from record_models import GOLDENS, save

BREAK = "BREAK"
LONG = "a red lighthouse, the bird's blue tree at dusk on a boat, green light"
# prompt and negative prompt as they are written, and each as texts of one weight
WEIGHTED = {
    "a1111": {
        "promptWeighting": "a1111",
        "prompt": r"a (red:1.4) ligh[t]house \(at\) ((dusk)), (blue",
        "texts": [
            ("a ", 1),
            ("red", 1.4),
            (" ligh", 1),
            ("t", 1 / 1.1),
            ("house (at) ", 1),
            ("dusk", 1.1 * 1.1),
            (", ", 1),
            ("blue", 1.1),
        ],
    },
    "a1111_long": {
        "promptWeighting": "a1111",
        "prompt": f"({LONG}:0.8), fish BREAK [bird]",
        "texts": [(LONG, 0.8), (", fish", 1), (BREAK, None), ("bird", 1 / 1.1)],
        "negativePrompt": "(blue:1.2) boat",
        "negative_texts": [("blue", 1.2), (" boat", 1)],
    },
    "comfy": {
        "promptWeighting": "comfy",
        "prompt": r"a (red:1.4) [light] \(at\) ((dusk)), (the (tree:0.5) bird:2)",
        "texts": [
            ("a ", 1),
            ("red", 1.4),
            (" [light] (at) ", 1),
            ("dusk", 1.1 * 1.1),
            (", ", 1),
            ("the ", 2),
            ("tree", 0.5),
            (" bird", 2),
        ],
    },
    "comfy_long": {
        "promptWeighting": "comfy",
        "prompt": f"(a fish:0.7) {LONG} BREAK (the boat:1.5)",
        "texts": [("a fish", 0.7), (f" {LONG} BREAK ", 1), ("the boat", 1.5)],
        "negativePrompt": "green",
        "negative_texts": [("green", 1)],
    },
}
PLAIN = {
    "skipped": {"prompt": "a blue fish", "negativePrompt": "red", "clipSkip": 1},
    "sizes": {
        "prompt": "a blue fish",
        "originalSize": [32, 48],
        "cropsCoordsTopLeft": [5, 7],
        "targetSize": [96, 80],
    },
    "negative_sizes": {
        "prompt": "a blue fish",
        "negativePrompt": "red",
        "negativeOriginalSize": [16, 24],
        "negativeCropsCoordsTopLeft": [3, 2],
        "negativeTargetSize": [64, 72],
    },
}
COMMON = {"guidance": 5, "steps": 3, "seed": 21}
NAMES = {
    "clipSkip": "clip_skip",
    "originalSize": "original_size",
    "cropsCoordsTopLeft": "crops_coords_top_left",
    "targetSize": "target_size",
    "negativeOriginalSize": "negative_original_size",
    "negativeCropsCoordsTopLeft": "negative_crops_coords_top_left",
    "negativeTargetSize": "negative_target_size",
}


def tokens_of(tokenizer, texts):
    """[(token, weight)] for each text; None for a break."""
    for text, weight in texts:
        if text == BREAK and weight is None:
            yield None
        else:
            yield [(t, weight) for t in tokenizer(text, add_special_tokens=False).input_ids]


def webui_chunks(tokenizer, texts, size):
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    chunks, chunk = [], []
    for group in tokens_of(tokenizer, texts):
        if group is None:
            chunks.append(chunk)
            chunk = []
            continue
        for token in group:
            if len(chunk) == size:
                commas = [i for i, (t, _) in enumerate(chunk) if t == comma]
                if token[0] != comma and commas and size - commas[-1] <= 20:
                    chunks.append(chunk[: commas[-1] + 1])
                    chunk = chunk[commas[-1] + 1 :]
                else:
                    chunks.append(chunk)
                    chunk = []
            chunk.append(token)
    return chunks + [chunk] if chunk or not chunks else chunks


def comfy_chunks(tokenizer, texts, size):
    chunks = [[]]
    for group in tokens_of(tokenizer, texts):
        if len(group) < 8 and len(chunks[-1]) + len(group) > size:
            chunks.append([])
        while group:
            room = size - len(chunks[-1])
            chunks[-1] += group[:room]
            group = group[room:]
            if group:
                chunks.append([])
    return chunks


def encode(pipeline, texts, weighting):
    """hidden [1,n*T,D] and pooled [1,P]."""
    towers = []
    pooled = None
    for tokenizer, encoder in [
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ]:
        T = tokenizer.model_max_length
        chunks = (webui_chunks if weighting == "a1111" else comfy_chunks)(tokenizer, texts, T - 2)

        def row(chunk):
            ids = [tokenizer.bos_token_id, *(t for t, _ in chunk), tokenizer.eos_token_id]
            return ids + [tokenizer.pad_token_id] * (T - len(ids))

        def run(ids):
            return encoder(torch.tensor(ids), output_hidden_states=True)

        out = run([row(chunk) for chunk in chunks])
        z = out.hidden_states[-2]
        ones = [1.0] * T
        weights = torch.tensor([[1.0, *(w for _, w in chunk), *ones][:T] for chunk in chunks])[..., None]
        if weighting == "a1111":
            for i in range(len(z)):
                scaled = z[i] * weights[i]
                z[i] = scaled * (z[i].mean() / scaled.mean())
        else:
            empty = run([row([])]).hidden_states[-2]
            z = (z - empty) * weights + empty
        towers.append(z.flatten(0, 1)[None])
        pooled = out[0][:1]
    lengths = [z.shape[1] for z in towers]
    assert lengths[0] == lengths[1], lengths
    return torch.cat(towers, -1), pooled


def longest(a, b):
    """Of two lengths repeated to their least common multiple, which attention does not see."""
    n = torch.lcm(torch.tensor(a.shape[1]), torch.tensor(b.shape[1])).item()
    return a.repeat(1, n // a.shape[1], 1), b.repeat(1, n // b.shape[1], 1)


@torch.no_grad()
def main():
    pipeline = StableDiffusionXLPipeline.from_pretrained(GOLDENS / "tiny-sdxl")
    pipeline.set_progress_bar_config(disable=True)
    calls, tensors = {}, {}

    def latents(**more):
        return pipeline(
            guidance_scale=COMMON["guidance"],
            num_inference_steps=COMMON["steps"],
            generator=[torch.Generator().manual_seed(COMMON["seed"])],
            output_type="latent",
            **more,
        ).images

    for name, call in WEIGHTED.items():
        weighting = call["promptWeighting"]
        hidden, pooled = encode(pipeline, call.pop("texts"), weighting)
        negative_texts = call.pop("negative_texts", None)
        negative, negative_pooled = (
            encode(pipeline, negative_texts, weighting)
            if negative_texts
            else (torch.zeros_like(hidden), torch.zeros_like(pooled))
        )
        long, long_negative = longest(hidden, negative)
        tensors |= {f"hidden.{name}": hidden, f"pooled.{name}": pooled}
        tensors[f"latents.{name}"] = latents(
            prompt_embeds=long,
            pooled_prompt_embeds=pooled,
            negative_prompt_embeds=long_negative,
            negative_pooled_prompt_embeds=negative_pooled,
        )
        calls[name] = {**call, **COMMON}
        print(name, tuple(hidden.shape), tuple(negative.shape))
    for name, call in PLAIN.items():
        named = {NAMES[k]: tuple(v) if isinstance(v, list) else v for k, v in call.items() if k in NAMES}
        hidden, _, pooled, _ = pipeline.encode_prompt(call["prompt"], clip_skip=call.get("clipSkip"))
        tensors |= {f"hidden.{name}": hidden, f"pooled.{name}": pooled}
        tensors[f"latents.{name}"] = latents(
            prompt=call["prompt"], negative_prompt=call.get("negativePrompt"), **named
        )
        calls[name] = {**call, **COMMON}

    torch.manual_seed(31)
    z = torch.randn(1, 4, 19, 13) * 5
    vae = AutoencoderKL.from_pretrained(GOLDENS / "tiny-sdxl" / "vae", sample_size=32)
    vae.enable_tiling()
    tensors |= {"tiles.latents": z, "tiles.picture": vae.decode(z).sample}
    whole = pipeline.vae.decode(z).sample
    print("tiles differ from the whole by", (tensors["tiles.picture"] - whole).abs().max().item())
    save("prompts", None, tensors)
    (GOLDENS / "prompts.json").write_text(json.dumps(calls, indent=2) + "\n")


if __name__ == "__main__":
    main()
