"""Records diffusers' schedulers on a network with a closed form, for the sampler tests.

    python record_samplers.py

samplers.json maps names to {sampler, config, steps: numbers of steps}. samplers.safetensors has under each
<name>.<steps> timesteps, sigmas and targets [steps], denoised [steps,B,C,h,w] and latents [B,C,h,w]; besides
noise.x [B,C,h,w] and alphas.<schedule>, the cumulative products of whole schedules.
"""

import json

import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler
from record_models import GOLDENS, save

SDXL = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
KINDS = {"euler": EulerDiscreteScheduler, "ddim": DDIMScheduler, "lcm": LCMScheduler}
NOISE_SEED = 5  # of the noise that LCM adds
STEPS = (1, 2, 4, 8, 25)
ZERO_SNR = dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
MORE = {  # beside every spacing, prediction type and number of steps
    "euler zero-snr": (ZERO_SNR, (4, 7)),
    "ddim zero-snr": (ZERO_SNR, (4, 7)),
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
    for kind in ("euler", "ddim"):
        for spacing in ("trailing", "leading", "linspace"):
            for prediction in ("epsilon", "v_prediction", "sample"):
                config = {**SDXL, "timestep_spacing": spacing, "prediction_type": prediction}
                yield f"{kind} {spacing} {prediction}", kind, config, STEPS
    for prediction in ("epsilon", "v_prediction", "sample"):
        yield f"lcm {prediction}", "lcm", {**SDXL, "prediction_type": prediction}, (1, 2, 4, 7, 8, 50)
    for name, (config, numbers) in MORE.items():
        yield name, name.split()[0], {**SDXL, **config}, numbers


def plan(kind, scheduler):
    """Timesteps, and the noise deviations relative to the signal at the start and at the end of each step."""
    if kind == "euler":
        return scheduler.timesteps, scheduler.sigmas[:-1], scheduler.sigmas[1:]
    if kind == "lcm":
        alphas = scheduler.alphas_cumprod[scheduler.timesteps]
        sigmas = ((1 - alphas) / alphas) ** 0.5
        return scheduler.timesteps, sigmas, torch.cat([sigmas[1:], torch.zeros(1)])
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    before = scheduler.timesteps - stride
    alphas = scheduler.alphas_cumprod
    ends = torch.where(before >= 0, alphas[before.clamp(min=0)], scheduler.final_alpha_cumprod)
    # No signal at all would be an infinite sigma.
    sigmas, targets = (((1 - a) / a).clamp(max=2**40) ** 0.5 for a in (alphas[scheduler.timesteps], ends))
    return scheduler.timesteps.float(), sigmas, targets


def trajectory(kind, scheduler, noise):
    x, denoised = noise * scheduler.init_noise_sigma, []
    options = {"generator": torch.Generator().manual_seed(NOISE_SEED)} if kind == "lcm" else {}
    for t in scheduler.timesteps:
        out = scheduler.step(network(scheduler.scale_model_input(x, t), float(t)), t, x, **options)
        x = out.prev_sample
        denoised.append(out.denoised if kind == "lcm" else out.pred_original_sample)
    return torch.stack(denoised), x


def record_samplers():
    torch.manual_seed(12)
    noise = torch.randn(1, 3, 2, 2)
    calls, tensors = {}, {"noise.x": noise}
    for name, kind, config, numbers in cases():
        calls[name] = {"sampler": kind, "config": config, "steps": numbers}
        options = {"clip_sample": False} if kind == "ddim" else {}
        for steps in numbers:
            scheduler = KINDS[kind](**config, **options)
            scheduler.set_timesteps(steps)
            denoised, latents = trajectory(kind, scheduler, noise)
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
