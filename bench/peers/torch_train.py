"""The bundled UNet's training step in PyTorch and diffusers, beside ours: the same network, batch and cores.

    pip install torch diffusers
    npm run bench engine        # writes nothing; prints our pictures/s
    python bench/peers/torch_train.py [--ours]   # --ours runs ours first and prints the ratio

The step is what ours does: forward, weighted squared error, backward, clipping of the global norm to 1, AdamW, and
the exponential moving average of all parameters (with torch's fused list operations).
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import time

import torch
from diffusers import UNet2DConditionModel

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
BATCH, SIDE, TOKENS = 32, 16, 24


def median_step(channels_last: bool, compiled: bool, rounds: int) -> float:
    torch.manual_seed(0)
    with open(os.path.join(ROOT, "models", "fewstep", "unet", "config.json")) as f:
        config = {k: v for k, v in json.load(f).items() if v is not None and not k.startswith("_")}
    unet = UNet2DConditionModel.from_config(config).train()
    if channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    network = torch.compile(unet) if compiled else unet
    parameters = list(unet.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, foreach=True)
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    sample, target = torch.randn(2, BATCH, 4, SIDE, SIDE)
    if channels_last:
        sample = sample.to(memory_format=torch.channels_last)
    hidden = torch.randn(BATCH, TOKENS, config["cross_attention_dim"])
    condition = {"text_embeds": torch.randn(BATCH, pooled), "time_ids": torch.full((BATCH, 6), 64.0)}
    timestep = torch.full((BATCH,), 500)
    weight = torch.ones(BATCH)

    def step() -> None:
        out = network(sample, timestep, hidden, added_cond_kwargs=condition).sample
        loss = ((out - target).pow(2).mean((1, 2, 3)) * weight).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 0.001)

    for _ in range(3):
        step()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def ours(rounds: int) -> float:
    env = {**os.environ, "ROUNDS": str(rounds)}
    text = subprocess.run(
        ["npm", "run", "--silent", "bench", "engine"], cwd=ROOT, env=env, check=True, capture_output=True, text=True
    ).stdout
    print(text.rstrip())
    return float(re.search(r"training step.*?([\d.]+) pictures/s", text).group(1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ours", action="store_true", help="run our benchmark first and print the ratio")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="also torch.compile (needs a C++ compiler)")
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    mine = ours(args.rounds) if args.ours else None
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, median of {args.rounds}")
    ways = [(False, False), (True, False)] + ([(False, True), (True, True)] if args.compile else [])
    best = 0.0
    for channels_last, compiled in ways:
        rate = BATCH / median_step(channels_last, compiled, args.rounds)
        best = max(best, rate)
        name = f"{'channels last' if channels_last else 'contiguous'}{', compiled' if compiled else ''}"
        print(f"  {name:<26}{rate:7.1f} pictures/s")
    if mine:
        print(f"ours {mine:.1f} pictures/s: {mine / best:.2f} times the best of PyTorch")


if __name__ == "__main__":
    main()
