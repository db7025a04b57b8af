"""Records what diffusers and transformers compute on tiny random models, for the parity tests.

    python record_models.py [part ...]    parts: clip unet vae tiny training; all when none is named

Every golden is <name>.json (the config as the library writes it) and <name>.safetensors with tensors
weight.<key>, input.<name>, output.<name>, cotangent.<name> and gradient.<key>: the gradients are those of
sum over outputs of (output * cotangent). Seeds are fixed, so a second run writes the same bytes. Made with
torch 2.15, diffusers 0.39 and transformers 4.57 on one thread.
"""

import copy
import sys
from pathlib import Path
from unittest import mock

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

GOLDENS = Path(__file__).parent / "goldens"
torch.set_num_threads(1)


def perturbed(model, gain=1.0):
    """
    Moves biases and norms away from their zeros and ones, so that leaving one out shows; `gain` multiplies
    the other weights, so that attention is less even and every gradient counts.
    """
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p + 0.1 * torch.randn_like(p) if p.dim() <= 1 else p * gain)
    return model.eval()


def save(name, model, tensors):
    path = GOLDENS / f"{name}.safetensors"
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, path)
    path.chmod(0o644)
    if model:
        config = model.config
        text = config.to_json_string() if hasattr(config, "to_json_string") else model.to_json_string()
        (GOLDENS / f"{name}.json").write_text(text.rstrip() + "\n")
    print(f"{name}: {path.stat().st_size} bytes")


def record(name, model, inputs, outputs):
    """Writes a golden. `outputs` are computed with gradients."""
    cotangents = {k: torch.randn_like(v) for k, v in outputs.items()}
    model.zero_grad()
    sum((v * cotangents[k]).sum() for k, v in outputs.items()).backward()
    groups = {
        "weight": dict(model.named_parameters()),
        "input": inputs,
        "output": outputs,
        "cotangent": cotangents,
        "gradient": {k: p.grad for k, p in model.named_parameters()},
    }
    save(name, model, {f"{group}.{k}": v for group, tensors in groups.items() for k, v in tensors.items()})


# --- CLIP -----------------------------------------------------------------------------------------


def text_config(**more):
    start, end = 62, 63
    tokens = dict(vocab_size=64, bos_token_id=start, eos_token_id=end, pad_token_id=end)
    sizes = dict(max_position_embeddings=12, hidden_size=16, intermediate_size=40, projection_dim=12)
    return CLIPTextConfig(**{**tokens, **sizes, **more})


def text_ids():
    """Two texts of different lengths: one padded with the end token, one with token 0 as OpenCLIP does."""
    ids = torch.tensor([[62, 5, 17, 3, 63, 63, 63, 63, 63, 63], [62, 9, 9, 40, 21, 33, 2, 63, 0, 0]])
    return {"ids": ids, "end": torch.tensor([4, 7])}


def text_outputs(out):
    hidden = {f"hidden_{i}": h for i, h in enumerate(out.hidden_states)}
    return {**hidden, "last": out.last_hidden_state}


def record_clip():
    torch.manual_seed(1)
    inputs = text_ids()
    config = text_config(num_hidden_layers=3, num_attention_heads=4, hidden_act="quick_gelu")
    model = perturbed(CLIPTextModel(config), gain=3)
    out = model(inputs["ids"], output_hidden_states=True)
    record("clip-text", model, inputs, {**text_outputs(out), "pooled": out.pooler_output})

    torch.manual_seed(2)
    config = text_config(num_hidden_layers=2, num_attention_heads=2, hidden_act="gelu")
    model = perturbed(CLIPTextModelWithProjection(config), gain=3)
    out = model(inputs["ids"], output_hidden_states=True)
    record("clip-text-projection", model, inputs, {**text_outputs(out), "embeds": out.text_embeds})

    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=18,
        intermediate_size=32,
        projection_dim=10,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=20,
        patch_size=5,
        hidden_act="quick_gelu",
    )
    model = perturbed(CLIPVisionModelWithProjection(config), gain=3)
    pixels = torch.randn(2, 3, 20, 20)
    out = model(pixels, output_hidden_states=True)
    hidden = {f"hidden_{i}": h for i, h in enumerate(out.hidden_states)}
    record("clip-vision", model, {"pixels": pixels}, {**hidden, "embeds": out.image_embeds})


# --- UNet -----------------------------------------------------------------------------------------

UNET = dict(
    sample_size=8,
    block_out_channels=[4, 8, 8],
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    layers_per_block=2,
    transformer_layers_per_block=[1, 1, 2],
    attention_head_dim=[1, 2, 4],
    cross_attention_dim=20,
    norm_num_groups=2,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=12 + 6 * 8,
)


def unet_inputs(batch, height, width, tokens, text_width):
    return {
        "sample": torch.randn(batch, 4, height, width),
        "timestep": torch.tensor([7.0, 801.0])[:batch],
        "hidden": torch.randn(batch, tokens, text_width),
        "pooled": torch.randn(batch, 12),
        "time_ids": torch.tensor([[64.0, 48, 0, 4, 64, 48], [32, 32, 2, 0, 40, 32]])[:batch],
    }


def predict(model, inputs):
    added = {"text_embeds": inputs["pooled"], "time_ids": inputs["time_ids"]} if "pooled" in inputs else None
    return model(inputs["sample"], inputs["timestep"], inputs["hidden"], added_cond_kwargs=added).sample


def record_unet():
    torch.manual_seed(4)
    model = perturbed(UNet2DConditionModel(**UNET), gain=2)
    inputs = unet_inputs(2, 8, 8, 5, 20)
    record("unet", model, inputs, {"prediction": predict(model, inputs)})

    # Settings per layer, convolutions around the transformers, sines first, no text_time.
    torch.manual_seed(5)
    model = perturbed(
        UNet2DConditionModel(
            sample_size=None,
            block_out_channels=[4, 8],
            down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            layers_per_block=[1, 2],
            transformer_layers_per_block=[[1], [1, 2]],
            reverse_transformer_layers_per_block=[[2, 1, 1], [1, 2]],
            attention_head_dim=2,
            cross_attention_dim=12,
            norm_num_groups=2,
            use_linear_projection=False,
            flip_sin_to_cos=False,
            freq_shift=1,
        ),
        gain=1.5,
    )
    without = ("pooled", "time_ids")
    inputs = {k: v for k, v in unet_inputs(2, 6, 4, 3, 12).items() if k not in without}
    record("unet-plain", model, inputs, {"prediction": predict(model, inputs)})

    # The same weights at a size that does not halve evenly; values only.
    inputs = {k: v for k, v in unet_inputs(1, 5, 7, 3, 12).items() if k not in without}
    flat = {f"input.{k}": v for k, v in inputs.items()} | {"output.prediction": predict(model, inputs)}
    save("unet-odd", None, flat)


# --- autoencoders ---------------------------------------------------------------------------------


def record_autoencoder(name, model, encode):
    pictures, latents = torch.rand(2, 3, 16, 8) * 2 - 1, torch.randn(2, 4, 4, 3)
    outputs = {"encoded": encode(model, pictures), "decoded": model.decode(latents).sample}
    record(name, model, {"pictures": pictures, "latents": latents}, outputs)


def record_vae():
    def encode(model, pictures):
        return model.encode(pictures).latent_dist.parameters

    levels = dict(down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3)
    channels = dict(block_out_channels=[4, 4, 8], norm_num_groups=2, sample_size=16)
    torch.manual_seed(6)
    model = AutoencoderKL(**levels, **channels, layers_per_block=1)
    record_autoencoder("vae", perturbed(model, gain=2), encode)
    torch.manual_seed(7)
    options = dict(mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False)
    model = AutoencoderKL(**levels, **channels, layers_per_block=1, **options)
    record_autoencoder("vae-plain", perturbed(model, gain=2), encode)


def record_tiny():
    torch.manual_seed(8)
    widths = dict(encoder_block_out_channels=(8,) * 3, decoder_block_out_channels=(8,) * 3)
    model = AutoencoderTiny(**widths, num_encoder_blocks=(1, 2, 1), num_decoder_blocks=(2, 1, 1))
    record_autoencoder("tiny", perturbed(model, gain=2), lambda model, x: model.encode(x).latents)


# --- training -------------------------------------------------------------------------------------

KEPT = (  # what is recorded of the weights after the last step
    "conv_in.weight",
    "add_embedding.linear_1.weight",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.weight",
    "mid_block.attentions.0.norm.weight",
    "up_blocks.1.resnets.0.conv_shortcut.bias",
    "conv_out.weight",
)


def noise_batch():
    """Inputs of the noise-prediction loss; `sample` is noisy and `target` the noise."""
    inputs = unet_inputs(2, 8, 8, 5, 20)
    noise = torch.randn_like(inputs["sample"])
    noisy = DDPMScheduler(beta_schedule="scaled_linear").add_noise(
        inputs["sample"], noise, inputs["timestep"].long()
    )
    return {**inputs, "sample": noisy, "target": noise}


class Muon:
    """torch.optim.Muon on linear layers and flattened kernels, AdamW on the rest; without rounding to bfloat16."""

    def __init__(self, parameters, **options):
        parameters = list(parameters)
        self.matrices = [p for p in parameters if p.ndim >= 2]
        self.flat = [torch.nn.Parameter(p.data.view(len(p), -1)) for p in self.matrices]  # the same memory
        others = [p for p in parameters if p.ndim < 2]
        decay = options.get("weight_decay", 0.01)
        self.optimizers = [
            torch.optim.Muon(self.flat, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, **options),
        ]
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]

    def zero_grad(self):
        for p in (*self.matrices, *(p for g in self.optimizers[1].param_groups for p in g["params"])):
            p.grad = None

    def step(self):
        for p, flat in zip(self.matrices, self.flat):
            flat.grad = p.grad.view_as(flat)
        with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.double):
            for optimizer in self.optimizers:
                optimizer.step()


def train(model, batches, steps=10, kind=torch.optim.AdamW, **options):
    """
    Per-step numbers, and weights and their average after the last step. In double precision:
    Adam divides rounding by rounding where gradients are small, so two float32 runs would drift apart.
    """
    model = copy.deepcopy(model).double()
    optimizer = kind(model.parameters(), **options)
    average = EMAModel(model.parameters(), decay=0.8)
    numbers = {"loss": [], "grad_norm": [], "learning_rate": [], "ema_decay": []}
    for step in range(steps):
        batch = {k: v.double() for k, v in batches[step % len(batches)].items()}
        rate = 0.002 * min(1, (step + 1) / 4)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = torch.nn.functional.mse_loss(predict(model, batch), batch["target"])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.step(model.parameters())
        for name, x in zip(numbers, (loss.item(), norm.item(), rate, average.cur_decay_value)):
            numbers[name].append(x)
    keys = [k for k, _ in model.named_parameters()]
    weights = dict(zip(keys, model.parameters())), dict(zip(keys, average.shadow_params))
    return {
        **{k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()},
        **{f"{group}.{k}": w[k].float() for group, w in zip(("weight", "ema"), weights) for k in KEPT},
    }


def record_training():
    torch.manual_seed(9)
    levels = dict(
        block_out_channels=[4, 8],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        transformer_layers_per_block=1,
        attention_head_dim=[1, 2],
        layers_per_block=1,
    )
    model = perturbed(UNet2DConditionModel(**{**UNET, **levels}))
    batches = [noise_batch() for _ in range(3)]
    runs = {
        "default": train(model, batches, weight_decay=0.01),
        "lightning": train(model, batches, betas=(0.0, 0.99), eps=1e-4, weight_decay=0.1),
        "muon": train(model, batches, kind=Muon, weight_decay=0.1),
    }
    flat = {f"start.{k}": v for k, v in model.named_parameters()}
    flat |= {f"batch.{i}.{k}": v for i, batch in enumerate(batches) for k, v in batch.items()}
    flat |= {f"{run}.{k}": v for run, tensors in runs.items() for k, v in tensors.items()}
    save("training", model, flat)
    for run, tensors in runs.items():
        print(run, [f"{x:.3f}" for x in tensors["loss"]], [f"{x:.2f}" for x in tensors["grad_norm"]])


PARTS = {
    "clip": record_clip,
    "unet": record_unet,
    "vae": record_vae,
    "tiny": record_tiny,
    "training": record_training,
}

if __name__ == "__main__":
    GOLDENS.mkdir(exist_ok=True)
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
