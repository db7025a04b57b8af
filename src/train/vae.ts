/** @file The autoencoder's training: reconstruction and a small Kullback–Leibler term (Kingma & Welling 2014). */

import { input, type Value } from "../graph/index.ts";
import { type VaeConfig, vaeDecode, vaeEncode, vaeScaleFactor } from "../models/index.ts";
import { rootScope } from "../nn/index.ts";
import { scalar } from "../ops/index.ts";

export interface VaeLossOptions {
  /** Weight of the mean Kullback–Leibler divergence per latent element. */
  klWeight: number;
  /** Weight of the mean absolute error beside the mean squared one. */
  l1Weight: number;
  /** Weight of the squared error between differences of neighbouring pixels: edges stay sharp. */
  edgeWeight: number;
}

/**
 * Inputs `pictures` [B,3,H,W] in [−1,1] and `noise` [B,4,h,w]; the loss is
 * mse + l1Weight·|Δ| + edgeWeight·mse(∇) + klWeight·½·mean(μ² + σ² − log σ² − 1).
 */
export function vaeLoss(
  config: VaeConfig,
  { batch, height, width }: { batch: number; height: number; width: number },
  { klWeight, l1Weight, edgeWeight }: VaeLossOptions,
): { loss: Value; metrics: Record<string, Value> } {
  const scope = rootScope();
  const factor = vaeScaleFactor(config);
  const z = config.latent_channels;
  const pictures = input("pictures", "float32", [batch, 3, height, width]);
  const noise = input("noise", "float32", [batch, z, height / factor, width / factor]);
  const moments = vaeEncode(scope, config, pictures);
  const mean = moments.slice(1, 0, z);
  const logVariance = moments
    .slice(1, z, 2 * z)
    .maximum(-30)
    .minimum(20);
  const latents = mean.add(logVariance.mul(0.5).exp().mul(noise));
  const difference = vaeDecode(scope, config, latents).sub(pictures);
  const mse = difference.pow(2).mean();
  const kl = mean.pow(2).add(logVariance.exp()).sub(logVariance).sub(1).mean().mul(0.5);
  const edges = [height, width]
    .map((size, i) =>
      difference
        .slice(2 + i, 1, size)
        .sub(difference.slice(2 + i, 0, size - 1))
        .pow(2)
        .mean(),
    )
    .reduce((a, b) => a.add(b));
  const loss = mse
    .add(difference.abs().mean().mul(l1Weight))
    .add(edges.mul(edgeWeight))
    .add(kl.mul(klWeight));
  // Peak signal is 2 in [−1, 1].
  const psnr = scalar(4, "float32")
    .div(mse)
    .log()
    .mul(10 / Math.LN10);
  return { loss, metrics: { mse, kl, psnr } };
}
