"""Records adapters of every kind for tiny-sdxl, and what their reference implementations make of them.

    python record_loras.py

Writes loras/<name>: a file as kohya, LyCORIS or diffusers, or a folder as PEFT writes them, with random weights; and
loras.json (the calls, in our names) with loras.safetensors: latents.<name> [B,4,h,w] of diffusers' pipeline with the
adapter in it by
diffusers, PEFT or LyCORIS. Needs peft 0.21 and lycoris-lora 4 beside the packages of
record_models.py.
"""

import json
import shutil

import torch
from diffusers import StableDiffusionXLPipeline
from lycoris.modules.loha import LohaModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.lokr import LokrModule
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from record_models import GOLDENS, save
from record_pipeline import generate
from safetensors.torch import save_file

TINY = GOLDENS / "tiny-sdxl"
LORAS = GOLDENS / "loras"
FEW = {"prompt": "a red lighthouse", "guidance": 1, "steps": 2, "schedule": "trailing", "strength": 1}
CALLS = {
    "kohya": {**FEW, "seed": 1, "file": "kohya.safetensors", "strength": 0.7},
    "diffusers": {**FEW, "seed": 2, "file": "diffusers/pytorch_lora_weights.safetensors"},
    "dora": {**FEW, "seed": 3, "file": "dora"},
    "loha": {**FEW, "seed": 4, "file": "loha"},
    "lokr": {**FEW, "seed": 5, "file": "lokr"},
    "lycoris": {**FEW, "seed": 6, "file": "lycoris.safetensors"},
}
LINEAR = ["to_q", "to_out.0", "ff.net.0.proj", "proj_in"]
CONV = ["conv1", "conv_shortcut"]


def load():
    return StableDiffusionXLPipeline.from_pretrained(TINY)


def randomize(module, std=0.4):
    """Adapters start as no change; magnitudes stay near the norms that they start at."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "magnitude" in name or "dora_scale" in name:
                p.mul_(1 + 0.3 * torch.rand_like(p))
            elif any(kind in name for kind in ("lora_", "hada_", "lokr_")):
                p.copy_(std * torch.randn_like(p))


def chosen(module, names, types=(torch.nn.Linear, torch.nn.Conv2d)):
    return [(n, m) for n, m in module.named_modules() if isinstance(m, types) and any(n.endswith(s) for s in names)]


def kohya(pipe):
    """Written with kohya's names for all three networks; diffusers loads and fuses it."""
    state = {}
    networks = [(pipe.unet, "lora_unet", LINEAR + CONV)]
    networks += [  # diffusers misses q_proj where there is no out_proj
        (pipe.text_encoder, "lora_te1", ["q_proj", "out_proj", "fc1"]),
        (pipe.text_encoder_2, "lora_te2", ["out_proj", "fc2"]),
    ]
    for network, prefix, names in networks:
        for name, m in chosen(network, names):
            kernel = m.weight.shape[2:]
            key = f"{prefix}_{name.replace('.', '_')}"
            state[f"{key}.lora_down.weight"] = 0.4 * torch.randn(2, m.weight.shape[1], *kernel)
            state[f"{key}.lora_up.weight"] = 0.4 * torch.randn(m.weight.shape[0], 2, *(1 for _ in kernel))
            state[f"{key}.alpha"] = torch.tensor(3.0)
    save_file(state, LORAS / "kohya.safetensors")
    pipe.load_lora_weights(LORAS, weight_name="kohya.safetensors")
    for network, prefix, names in networks:
        count = sum(hasattr(m, "lora_A") for m in network.modules())
        assert count == len(chosen(load_of(pipe, network), names)), f"{prefix}: {count} modules"
    pipe.fuse_lora(lora_scale=CALLS["kohya"]["strength"])
    return pipe


def load_of(pipe, network):
    """The same network without adapters."""
    name = next(n for n in ("unet", "text_encoder", "text_encoder_2") if getattr(pipe, n) is network)
    return getattr(load(), name)


def diffusers(pipe):
    """PEFT adapters on all three networks, saved by diffusers with their settings in the metadata."""
    configs = {
        "unet": LoraConfig(r=2, lora_alpha=3, target_modules=LINEAR + CONV, init_lora_weights=False),
        "text_encoder": LoraConfig(r=2, lora_alpha=1, target_modules=["q_proj", "fc1"], init_lora_weights=False),
        "text_encoder_2": LoraConfig(r=3, lora_alpha=6, target_modules=["k_proj"], init_lora_weights=False),
    }
    states = {}
    for name, config in configs.items():
        network = getattr(pipe, name)
        network.add_adapter(config)
        randomize(network)
        config.base_model_name_or_path = None
        states[name] = get_peft_model_state_dict(network)
    StableDiffusionXLPipeline.save_lora_weights(
        LORAS / "diffusers",
        unet_lora_layers=states["unet"],
        text_encoder_lora_layers=states["text_encoder"],
        text_encoder_2_lora_layers=states["text_encoder_2"],
        unet_lora_adapter_metadata=configs["unet"].to_dict(),
        text_encoder_lora_adapter_metadata=configs["text_encoder"].to_dict(),
        text_encoder_2_lora_adapter_metadata=configs["text_encoder_2"].to_dict(),
    )
    again = load()
    again.load_lora_weights(LORAS / "diffusers")
    return again


def peft(pipe, name, config):
    """Saved by PEFT as a folder, with adapter_config.json."""
    model = get_peft_model(pipe.unet, config)
    config.base_model_name_or_path = None
    randomize(model)
    model.save_pretrained(LORAS / name)
    (LORAS / name / "README.md").unlink(missing_ok=True)
    pipe.unet = model.merge_and_unload()
    return pipe


def dora(pipe):
    patterns = {"alpha_pattern": {"to_q": 5}, "rank_pattern": {"conv1": 3}}
    config = LoraConfig(r=2, lora_alpha=3, target_modules=LINEAR + CONV, use_dora=True, use_rslora=True, **patterns)
    return peft(pipe, "dora", config)


def loha(pipe):
    return peft(pipe, "loha", LoHaConfig(r=2, alpha=3, target_modules=LINEAR + CONV, use_effective_conv2d=True))


def lokr(pipe):
    names = LINEAR + CONV
    return peft(pipe, "lokr", LoKrConfig(r=1, alpha=3, target_modules=names, use_effective_conv2d=True))


def lycoris(pipe):
    """One file with all that LyCORIS has for some layer or other; its modules stand in for the layers."""
    state = {}
    unet, te1, te2 = pipe.unet, pipe.text_encoder, pipe.text_encoder_2
    tucker = dict(lora_dim=2, alpha=3, use_tucker=True)
    plain = dict(lora_dim=2, alpha=3)
    decomposed = dict(weight_decompose=True)
    plans = [
        ("lora_unet", unet, "conv1", LoConModule, [tucker, {**plain, **decomposed}]),
        ("lora_unet", unet, "conv2", LohaModule, [tucker, plain, {**plain, **decomposed, "wd_on_out": False}]),
        ("lora_unet", unet, "conv_shortcut", LokrModule, [plain]),
        ("lora_unet", unet, "proj_in", LokrModule, [{**plain, "full_matrix": True}]),
        ("lora_unet", unet, "sampler", LokrModule, [tucker]),
        ("lora_unet", unet, "s.0.conv", LokrModule, [{**tucker, "lora_dim": 1, "factor": 2, "decompose_both": True}]),
        ("lora_unet", unet, "to_q", LohaModule, [plain, {**plain, **decomposed}]),
        ("lora_unet", unet, "to_v", LoConModule, [{**plain, **decomposed, "wd_on_out": False}]),
        ("lora_unet", unet, "to_k", LokrModule, [{**plain, "lora_dim": 1, "decompose_both": True, "factor": 2}]),
        ("lora_te1", te1, "fc1", LokrModule, [plain]),
        ("lora_te2", te2, "v_proj", LohaModule, [{**plain, **decomposed}]),
    ]
    merged, adapters = [], []
    for prefix, network, ending, kind, options in plans:
        for i, (name, m) in enumerate(chosen(network, [ending])):
            key = f"{prefix}_{name.replace('.', '_')}"
            adapter = kind(key, m, **options[i % len(options)])
            randomize(adapter)
            state |= {f"{key}.{k}": v.detach().clone() for k, v in adapter.state_dict().items() if k != "scalar"}
            adapters.append(adapter.eval())
    for name, m in chosen(unet, ["norm1", "norm2"], (torch.nn.LayerNorm, torch.nn.GroupNorm)):
        key = f"lora_unet_{name.replace('.', '_')}"
        for part, p in (("w_norm", m.weight), ("b_norm", m.bias)):
            state[f"{key}.{part}"] = 0.3 * torch.randn_like(p)
            merged.append((p, p + state[f"{key}.{part}"]))
    for name, m in chosen(unet, ["time_emb_proj"]):
        key = f"lora_unet_{name.replace('.', '_')}"
        for part, p in (("diff", m.weight), ("diff_b", m.bias)):
            state[f"{key}.{part}"] = 0.3 * torch.randn_like(p)
            merged.append((p, p + state[f"{key}.{part}"]))
    with torch.no_grad():
        for p, value in merged:
            p.copy_(value)
    for adapter in adapters:
        adapter.apply_to()
    pipe.adapters = adapters
    parts = sorted({k.split(".", 1)[1] for k in state})
    print(f"lycoris: {', '.join(parts)}")
    save_file({k: v.contiguous() for k, v in state.items()}, LORAS / "lycoris.safetensors")
    return pipe


def record():
    shutil.rmtree(LORAS, ignore_errors=True)
    LORAS.mkdir()
    tensors = {}
    for i, make in enumerate([kohya, diffusers, dora, loha, lokr, lycoris]):
        torch.manual_seed(100 + i)
        name = make.__name__
        plain, _ = generate(load(), CALLS[name])
        with torch.no_grad():
            latents, _ = generate(make(load()), CALLS[name])
        change = ((latents - plain).abs().max() / latents.abs().max()).item()
        assert change > 0.05, f"{name} changes nothing"
        print(f"{name}: latents to {latents.abs().max():.1f}, changed by {change:.2f}")
        tensors[f"latents.{name}"] = latents
    for path in LORAS.rglob("*.*"):
        path.chmod(0o644)
    save("loras", None, tensors)
    (GOLDENS / "loras.json").write_text(json.dumps(CALLS, indent=2) + "\n")


if __name__ == "__main__":
    record()
