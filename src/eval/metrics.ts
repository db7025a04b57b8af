/** @file The numbers of the judge, as functions of features. Rows are pictures. */

import { EigenvalueDecomposition, Matrix } from "ml-matrix";

/** Mean and covariance of rows. */
interface Moments {
  mean: number[];
  covariance: Matrix;
}

function moments(rows: readonly Float32Array[]): Moments {
  const [n, D] = [rows.length, rows[0].length];
  const mean = new Array<number>(D).fill(0);
  for (const row of rows) for (let i = 0; i < D; i++) mean[i] += row[i] / n;
  const centred = new Matrix(n, D);
  rows.forEach((row, r) => {
    for (let i = 0; i < D; i++) centred.set(r, i, row[i] - mean[i]);
  });
  return {
    mean,
    covariance: centred
      .transpose()
      .mmul(centred)
      .div(n - 1),
  };
}

/** Square root of a symmetric positive matrix; what rounding made negative counts as zero. */
function squareRoot(matrix: Matrix): Matrix {
  const { eigenvectorMatrix: V, realEigenvalues } = new EigenvalueDecomposition(matrix, {
    assumeSymmetric: true,
  });
  const scaled = V.clone();
  for (const [i, value] of realEigenvalues.entries()) scaled.mulColumn(i, Math.sqrt(Math.max(0, value)));
  return scaled.mmul(V.transpose());
}

/**
 * Fréchet distance of two feature sets (Heusel et al. 2017, equation 6):
 * |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½). It shrinks with more pictures: compare sets of one size only. It is never 0
 * between sets drawn from one distribution, and with no more pictures than features, where the covariances lack
 * directions, most of it is chance: such sets order models that differ much, nothing else.
 */
export function frechetDistance(a: readonly Float32Array[], b: readonly Float32Array[]): number {
  const [first, second] = [moments(a), moments(b)];
  const root = squareRoot(first.covariance);
  // tr (Σ₁Σ₂)^½ = tr (Σ₁^½ Σ₂ Σ₁^½)^½, and that matrix is symmetric.
  const middle = root.mmul(second.covariance).mmul(root);
  const symmetric = middle.add(middle.transpose()).div(2);
  const values = new EigenvalueDecomposition(symmetric, { assumeSymmetric: true }).realEigenvalues;
  const cross = values.reduce((sum, v) => sum + Math.sqrt(Math.max(0, v)), 0);
  const shift = first.mean.reduce((sum, m, i) => sum + (m - second.mean[i]) ** 2, 0);
  const distance = shift + first.covariance.trace() + second.covariance.trace() - 2 * cross;
  return Math.max(0, distance); // of equal sets it may round below
}

export function dot(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** 100 · mean cosine of pictures and their captions (Hessel et al. 2021); all of unit length. */
export function clipScore(images: readonly Float32Array[], texts: readonly Float32Array[]): number {
  return (100 * images.reduce((sum, image, i) => sum + dot(image, texts[i]), 0)) / images.length;
}

/**
 * Share of pictures whose own caption is among the k nearest of a fixed choice of captions.
 * @param choices per picture, indices of captions; its own is the first.
 */
export function recallAt(
  k: number,
  images: readonly Float32Array[],
  texts: readonly Float32Array[],
  choices: readonly (readonly number[])[],
): number {
  const hits = images.filter((image, i) => {
    const [own, ...others] = choices[i].map((c) => dot(image, texts[c]));
    return others.filter((score) => score >= own).length < k;
  });
  return hits.length / images.length;
}

/** Root of the mean squared difference of two pictures, as a share of the value range. */
export function pixelDistance(a: Uint8Array, b: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] - b[i]) ** 2;
  return Math.sqrt(sum / a.length) / 255;
}

/** Mean Euclidean distance of all pairs of rows. */
export function pairwiseDistance(rows: readonly Float32Array[]): number {
  return mean(rows.flatMap((a, i) => rows.slice(i + 1).map((b) => euclidean(a, b))));
}

function euclidean(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] - b[i]) ** 2;
  return Math.sqrt(sum);
}

/** Distance of each picture to the nearest of a set. */
export function nearestDistances(pictures: readonly Uint8Array[], set: readonly Uint8Array[]): number[] {
  return pictures.map((p) => {
    let best = Number.POSITIVE_INFINITY;
    for (const other of set) {
      let sum = 0;
      for (let i = 0; i < p.length && sum < best; i++) sum += (p[i] - other[i]) ** 2;
      if (sum < best) best = sum;
    }
    return Math.sqrt(best / p.length) / 255;
  });
}

/** Peak signal-to-noise ratio in dB of all pictures together: 10·log₁₀(255² / mean squared error). */
export function psnr(a: readonly Uint8Array[], b: readonly Uint8Array[]): number {
  const squares = a.reduce((sum, picture, i) => sum + pixelDistance(picture, b[i]) ** 2, 0) / a.length;
  return -10 * Math.log10(squares);
}

export function mean(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0) / values.length;
}
