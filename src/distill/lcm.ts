/**
 * @file Latent consistency distillation (Luo et al. 2023, Algorithm 1; LCM-LoRA, Luo et al. 2023b), the baseline: all
 * points of one trajectory must lead to the same clean latents. Guidance is one number, as in LCM-LoRA, and the target
 * network is the student itself without gradient (Song & Dhariwal 2024, §3.2).
 */

import { input, stopGradient, type Value } from "../graph/index.ts";
import { unet } from "../models/index.ts";
import type { Pass } from "../train/index.ts";
import { type Level, meaning, networkInputs, type Setting, sharedInputs, teacherPass } from "./lightning.ts";

/** Of the pseudo-Huber loss √(d² + c²) − c. */
const HUBER = 0.001;

/**
 * The teacher takes one guided DDIM step of k timesteps from x_{n+k} (`sample`) to x_n (`target`);
 * f(x, t) = c_skip·x + c_out·x₀(x, t), whose coefficients `skip` and `out` [2,B] make it x itself at t = 0.
 */
export function lcmPasses(setting: Setting): Pass[] {
  const { config, student, batch } = setting;
  const { sample, shape, levels, conditions } = sharedInputs(setting, 1);
  const [skips, outs] = ["skip", "out"].map((name) => input(name, "float32", [2, batch.batch]));
  const row = (v: Value, k: number) =>
    v
      .slice(0, k, k + 1)
      .squeeze(0)
      .unsqueeze(1, 2, 3);
  const consistency = (x: Value, level: Level, k: number) => {
    const u = unet(student.scope, config, networkInputs(x, level.timestep, conditions));
    const [clean] = meaning(x, u, level, student.prediction);
    return row(skips, k).mul(x).add(row(outs, k).mul(clean));
  };
  const previous = consistency(input("target", "float32", shape), levels[1], 1);
  const difference = consistency(sample, levels[0], 0).sub(stopGradient(previous));
  const loss = difference
    .pow(2)
    .add(HUBER ** 2)
    .sqrt()
    .sub(HUBER)
    .mean();
  return [teacherPass({ ...setting, steps: 1 }), { name: "", loss }];
}
