"""Records diffusers' schedulers on a network with a closed form, for the sampler tests.

    python record_samplers.py

samplers.json maps names to {sampler, config, schedule, steps: numbers of steps}. samplers.safetensors has under
each <name>.<steps> timesteps, sigmas and targets [steps], denoised [steps,B,C,h,w] and latents [B,C,h,w]; besides
noise.x [B,C,h,w] and alphas.<schedule>, the cumulative products of whole schedules.
"""

import json

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from record_models import GOLDENS, save

SDXL = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
KINDS = {
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "dpmpp_2m_sde": DPMSolverMultistepScheduler,
    "uni_pc": UniPCMultistepScheduler,
    "lcm": LCMScheduler,
    "tcd": TCDScheduler,
}
OPTIONS = {"ddim": {"clip_sample": False}, "dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"}}
DISTILLED = ("lcm", "tcd")  # which have timesteps of their own
MULTISTEP = ("dpmpp_2m", "dpmpp_2m_sde", "uni_pc")  # which work on latents of unit variance and whole timesteps
NOISY = ("euler_ancestral", "dpmpp_2m_sde", *DISTILLED)
NO_SAMPLE = ("euler_ancestral", "heun")  # which cannot take the prediction type "sample"
# Schedules that are taken from diffusers. It has the exponential one of multistep solvers as well, but cuts off the
# fractions of its timesteps, so that 999 becomes 998.
NATIVE = {
    **{kind: ("karras", "exponential") for kind in ("euler", "heun")},
    **{kind: ("karras",) for kind in MULTISTEP},
}
NOISE_SEED = 5  # of the noise that samplers add
PREDICTIONS = ("epsilon", "v_prediction", "sample")
STEPS = (1, 2, 4, 8, 25)
ZERO_SNR = dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
MORE = {  # beside every spacing, prediction type and number of steps
    "euler zero-snr": (ZERO_SNR, (4, 7)),
    "ddim zero-snr": (ZERO_SNR, (4, 7)),
    "euler_ancestral zero-snr": (ZERO_SNR, (4, 7)),
    "dpmpp_2m zero-snr": (ZERO_SNR, (4, 7)),
    "dpmpp_2m_sde zero-snr": (ZERO_SNR, (4, 7)),
    "uni_pc zero-snr": (ZERO_SNR, (4, 7)),
    "ddim end at timestep 0": (dict(set_alpha_to_one=False, timestep_spacing="leading"), (1, 7)),
    "ddim end at timestep 0, linspace": (dict(set_alpha_to_one=False, timestep_spacing="linspace"), (4, 7)),
    "euler linear": (
        dict(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", timestep_spacing="leading"),
        (4, 7),
    ),
    # Numbers of steps where numpy's rounded strides move timesteps across halves.
    "euler halves": (dict(timestep_spacing="trailing"), (48,)),
    "ddim halves": (dict(timestep_spacing="linspace"), (27, 31)),
}


def network(x, t):
    """In float32, so that the other side may compute it as it likes."""
    return 0.8 * x * (1 - t / 2000) + 0.1 * x * x / (1 + x * x)


def cases():
    """Name, kind, config, schedule where it is not the spacing of the config, and numbers of steps."""
    for kind in KINDS:
        spacings = ("trailing", "leading", "linspace") if kind not in DISTILLED else (None,)
        steps = STEPS if kind in ("euler", "ddim") else (1, 2, 4, 7, 8, 50) if kind == "lcm" else (1, 2, 5, 12)
        for spacing in spacings:
            for prediction in PREDICTIONS:
                config = {**SDXL, "timestep_spacing": spacing, "prediction_type": prediction}
                name = f"{kind} {spacing} {prediction}"
                if kind in DISTILLED:
                    del config["timestep_spacing"]
                    name = f"{kind} {prediction}"
                yield name, kind, config, None, steps
    for name, (config, numbers) in MORE.items():
        yield name, name.split()[0], {**SDXL, **config}, None, numbers
    for kind in ("euler", "euler_ancestral", "heun", *MULTISTEP):
        for schedule in ("normal", "simple", "sgm_uniform", "karras", "exponential"):
            yield f"{kind} {schedule}", kind, SDXL, schedule, (1, 3, 10)
    for kind in DISTILLED:  # only whole timesteps are possible
        yield f"{kind} simple", kind, SDXL, "simple", (1, 3, 10)


def levels(schedule, alphas, steps):
    """
    Timesteps and sigmas of the schedules of k-diffusion (karras, exponential) and ComfyUI (the others), from their
    definitions: sigma is geometric between two timesteps, and both ends of training are reached unless said.
    """
    logs = np.log(((1 - alphas) / alphas) ** 0.5)
    last = len(logs) - 1
    if schedule in ("karras", "exponential"):
        largest, smallest = np.exp(logs[[last, 0]])
        if schedule == "karras":
            sigmas = np.linspace(largest ** (1 / 7), smallest ** (1 / 7), steps) ** 7
        else:
            sigmas = np.exp(np.linspace(logs[last], logs[0], steps))
        return np.interp(np.log(sigmas), logs, np.arange(last + 1)), sigmas
    timesteps = {
        "normal": np.linspace(last, 0, steps),
        "sgm_uniform": np.linspace(last, 0, steps + 1)[:-1],
        "simple": np.array([last - int(i * ((last + 1) / steps)) for i in range(steps)]),
    }[schedule]
    return timesteps, np.exp(np.interp(timesteps, np.arange(last + 1), logs))


def scheduler_of(kind, config, schedule, steps):
    """Ready to step."""
    options = {**OPTIONS.get(kind, {}), **config}
    if kind in NO_SAMPLE and config.get("prediction_type") == "sample":
        options["prediction_type"] = "epsilon"
    native = schedule in NATIVE.get(kind, ()) and steps > 1  # a single step starts at the smallest sigma there
    if native:
        options[f"use_{schedule}_sigmas"] = True
    scheduler = KINDS[kind](**options)
    scheduler.set_timesteps(steps)
    if schedule and not native:
        timesteps, sigmas = levels(schedule, scheduler.alphas_cumprod.double().numpy(), steps)
        sigmas = torch.tensor([*sigmas, 0], dtype=torch.float32)
        timesteps = torch.tensor(timesteps, dtype=torch.float32)
        if kind in MULTISTEP:
            timesteps = timesteps.round().long()
        if kind in DISTILLED:
            timesteps = timesteps.long()
        if kind == "heun":
            sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
            timesteps = torch.cat([timesteps[:1], timesteps[1:].repeat_interleave(2)])
        scheduler.timesteps, scheduler.sigmas = timesteps, sigmas
    return scheduler


def plan(kind, scheduler):
    """Timesteps, and the noise deviations relative to the signal at the start and at the end of each step."""
    timesteps = scheduler.timesteps.float()
    if kind == "heun":
        return timesteps[::2], scheduler.sigmas[:-1:2], scheduler.sigmas[1::2]
    if kind not in (*DISTILLED, "ddim"):
        return timesteps, scheduler.sigmas[:-1], scheduler.sigmas[1:]
    # No signal at all would be an infinite sigma.
    sigma_of = lambda alphas: ((1 - alphas) / alphas).clamp(max=2**40) ** 0.5
    alphas = scheduler.alphas_cumprod
    sigmas = sigma_of(alphas[scheduler.timesteps])
    if kind in DISTILLED:
        end = torch.zeros(1) if kind == "lcm" else sigma_of(alphas[:1])
        return timesteps, sigmas, torch.cat([sigmas[1:], end])
    before = scheduler.timesteps - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    ends = torch.where(before >= 0, alphas[before.clamp(min=0)], scheduler.final_alpha_cumprod)
    return timesteps, sigmas, sigma_of(ends)


def prediction(kind, scheduler, x, t, target):
    """What the scheduler takes as the network's output."""
    out = network(scheduler.scale_model_input(x, t), float(t))
    if target == "sample" and kind in NO_SAMPLE:
        return (x - out) / scheduler.sigmas[scheduler.step_index]
    return out


def trajectory(kind, scheduler, noise, target, schedule):
    scale = scheduler.init_noise_sigma
    if kind not in MULTISTEP and schedule in ("normal", "simple", "sgm_uniform"):
        scale = (scheduler.sigmas[0] ** 2 + 1) ** 0.5 if kind not in DISTILLED else 1  # as ComfyUI
    x, denoised = noise * scale, []
    options = {"generator": torch.Generator().manual_seed(NOISE_SEED)} if kind in NOISY else {}
    for t in scheduler.timesteps:
        again = kind == "heun" and not scheduler.state_in_first_order
        predicted = prediction(kind, scheduler, x, t, target)
        out = scheduler.step(predicted, t, x, **options)
        if kind in MULTISTEP:
            denoised.append(scheduler.model_outputs[-1])
        elif kind == "tcd":  # which does not tell
            a, b = scheduler.alphas_cumprod[t] ** 0.5, (1 - scheduler.alphas_cumprod[t]) ** 0.5
            clean = {"epsilon": (x - b * predicted) / a, "v_prediction": a * x - b * predicted, "sample": predicted}
            denoised.append(clean[target])
        elif not again:
            denoised.append(out.denoised if kind == "lcm" else out.pred_original_sample)
        x = out.prev_sample
    return torch.stack(denoised), x


def record_samplers():
    torch.manual_seed(12)
    noise = torch.randn(1, 3, 2, 2)
    calls, tensors = {}, {"noise.x": noise}
    for name, kind, config, schedule, numbers in cases():
        calls[name] = {"sampler": kind, "config": config, "schedule": schedule, "steps": numbers}
        if not schedule:
            del calls[name]["schedule"]
        for steps in numbers:
            scheduler = scheduler_of(kind, config, schedule, steps)
            target = config.get("prediction_type", "epsilon")
            denoised, latents = trajectory(kind, scheduler, noise, target, schedule)
            timesteps, sigmas, targets = plan(kind, scheduler)
            found = dict(timesteps=timesteps, sigmas=sigmas, targets=targets, denoised=denoised, latents=latents)
            tensors |= {f"{name}.{steps}.{k}": torch.as_tensor(v, dtype=torch.float32) for k, v in found.items()}
    for schedule in ("scaled_linear", "linear"):
        scheduler = EulerDiscreteScheduler(**{**SDXL, "beta_schedule": schedule})
        tensors[f"alphas.{schedule}"] = scheduler.alphas_cumprod
    save("samplers", None, tensors)
    (GOLDENS / "samplers.json").write_text(json.dumps(calls, indent=1) + "\n")


if __name__ == "__main__":
    record_samplers()
