"""Records what torch's CPU generator draws, for the noise tests.

    python record_noise.py

Writes noise.safetensors: randn.<seed>.<size>; stream.<seed> and per-image.<seed> [3,1,2,3], the two batch rules
(one generator, a list of generators) of diffusers' randn_tensor; mixed.<i>, draws of several kinds from one
generator. And noise.json: SHA-256 of the bytes of SDXL's latents [1,4,128,128] by seed, and of two by each rule.
The bits are those of x86 processors with AVX2; elsewhere torch draws other last bits.
"""

import hashlib
import json

import torch
from diffusers.utils.torch_utils import randn_tensor
from record_models import GOLDENS, save

SEEDS = [0, 1, 42, 2**32 + 5, 2**64 - 1]
SIZES = [1, 2, 15, 16, 17, 31, 32, 1000]


def generator(seed):
    return torch.Generator().manual_seed(seed % 2**64)


def batch(rule, seed, shape):
    one = rule == "stream"
    return randn_tensor(shape, generator(seed) if one else [generator(seed + i) for i in range(shape[0])])


def digest(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def record_noise():
    tensors = {f"randn.{seed}.{n}": torch.randn(n, generator=generator(seed)) for seed in SEEDS for n in SIZES}
    for rule in ("stream", "per-image"):
        tensors |= {f"{rule}.{seed}": batch(rule, seed, (3, 1, 2, 3)) for seed in SEEDS}
    g = generator(7)
    draws = [
        torch.randn(3, generator=g),  # leaves the second value of a pair
        torch.rand(5, generator=g),
        torch.randn(20, generator=g),
        torch.randint(1000, (5,), generator=g),
        torch.randn(2, generator=g),  # begins with that value
        torch.randint(2**28 - 1, (5,), generator=g),
    ]
    tensors |= {f"mixed.{i}": draw for i, draw in enumerate(draws)}
    save("noise", None, tensors)
    digests = {
        "latents": {seed: digest(torch.randn(1, 4, 128, 128, generator=generator(seed))) for seed in SEEDS},
        **{rule: {42: digest(batch(rule, 42, (2, 4, 128, 128)))} for rule in ("stream", "per-image")},
    }
    (GOLDENS / "noise.json").write_text(json.dumps(digests, indent=2) + "\n")


if __name__ == "__main__":
    record_noise()
