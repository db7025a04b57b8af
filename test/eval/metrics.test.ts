import { describe, expect, test } from "vitest";
import {
  clipScore,
  frechetDistance,
  nearestDistances,
  pairwiseDistance,
  pixelDistance,
  psnr,
  recallAt,
} from "../../src/eval/metrics.ts";

const rows = (...values: number[][]): Float32Array[] => values.map((row) => Float32Array.from(row));
const bytes = (...values: number[]): Uint8Array => Uint8Array.from(values);

describe("Fréchet distance", () => {
  /** Mean (x, y) and covariance diag(2a²/3, 2b²/3): the sum of squares over n − 1 = 3. */
  const cross = (a: number, b: number, [x, y] = [0, 0]) =>
    rows([x + a, y], [x - a, y], [x, y + b], [x, y - b]);

  test("is zero between a set and itself, in any order", () => {
    const set = rows([1, 2, 3], [4, 0, 1], [2, 2, 7], [0, 5, 5]);
    expect(frechetDistance(set, [...set].reverse())).toBeCloseTo(0, 6);
  });

  test("of shifted sets is the squared shift", () =>
    expect(frechetDistance(cross(1, 2), cross(1, 2, [3, 4]))).toBeCloseTo(25, 6));

  test("of one dimension is (μ₁ − μ₂)² + (σ₁ − σ₂)²", () =>
    // variances 2 and 18
    expect(frechetDistance(rows([1], [3]), rows([2], [8]))).toBeCloseTo(
      9 + (Math.SQRT2 - Math.sqrt(18)) ** 2,
      6,
    ));

  test("of commuting covariances is Σ(σ₁ − σ₂)²", () => {
    const scale = 2 / 3;
    expect(frechetDistance(cross(1, 3), cross(4, 5))).toBeCloseTo(scale * ((4 - 1) ** 2 + (5 - 3) ** 2), 5);
  });

  test("of covariances that do not commute: tr(Σ₁Σ₂)^½ by the trace and determinant of 2×2", () => {
    // Σ₁ = diag(6, 2/3); Σ₂ = 5/3·[[1, 3/5], [3/5, 1]]: eigenvalues 8/3 and 2/3 along the diagonals
    const second = rows(
      [Math.SQRT2, Math.SQRT2],
      [-Math.SQRT2, -Math.SQRT2],
      [Math.SQRT1_2, -Math.SQRT1_2],
      [-Math.SQRT1_2, Math.SQRT1_2],
    );
    const trace = (6 + 2 / 3) * (5 / 3);
    const determinant = 6 * (2 / 3) * (8 / 3) * (2 / 3);
    const expected = 6 + 2 / 3 + 10 / 3 - 2 * Math.sqrt(trace + 2 * Math.sqrt(determinant));
    expect(frechetDistance(cross(3, 1), second)).toBeCloseTo(expected, 5);
    expect(frechetDistance(second, cross(3, 1))).toBeCloseTo(expected, 5);
  });

  test("of fewer pictures than features is finite", () =>
    expect(frechetDistance(rows([1, 0, 0, 0], [0, 1, 0, 0]), rows([0, 0, 1, 0], [0, 0, 0, 1]))).toBeCloseTo(
      1 + 1 + 1,
      5,
    ));
});

describe("retrieval", () => {
  const texts = rows([1, 0], [0.6, 0.8], [0, 1]);

  test("recall@k counts captions that score higher, and ties against the picture", () => {
    const images = rows([1, 0], [1, 0], [0.6, 0.8]); // cosines (1, 0.6, 0), (1, 0.6, 0), (0.6, 1, 0.8)
    const choices = [
      [0, 1, 2],
      [1, 0, 2],
      [2, 0, 1],
    ]; // own ones come 1st, 2nd and 2nd
    expect([1, 2, 3].map((k) => recallAt(k, images, texts, choices))).toEqual([1 / 3, 1, 1]);
    expect(recallAt(1, rows([1, 0]), rows([0, 1], [0, -1]), [[0, 1]])).toBe(0);
  });

  test("only the chosen captions compete", () => expect(recallAt(1, rows([1, 0]), texts, [[2]])).toBe(1));

  test("CLIP score is 100 · the mean cosine", () =>
    expect(clipScore(rows([1, 0], [0, 1]), rows([0.6, 0.8], [0, 1]))).toBeCloseTo(80, 5));
});

test("pairwise distance is the mean over all pairs", () => {
  expect(pairwiseDistance(rows([0, 0], [3, 4], [0, 8]))).toBeCloseTo((5 + 8 + 5) / 3, 6);
  expect(pairwiseDistance(rows([1, 2], [1, 2]))).toBe(0);
});

describe("pixels", () => {
  test("PSNR takes the mean over all pictures before the logarithm", () => {
    const black = bytes(0, 0, 0, 0);
    expect(psnr([black], [bytes(255, 255, 255, 255)])).toBeCloseTo(0, 10);
    expect(psnr([black, black], [bytes(51, 0, 0, 0), bytes(0, 0, 0, 0)])).toBeCloseTo(
      10 * Math.log10(200),
      10,
    );
    expect(psnr([black], [black])).toBe(Number.POSITIVE_INFINITY);
  });

  test("distance is the root of the mean square, as a share of 255", () => {
    expect(pixelDistance(bytes(0, 0, 0), bytes(255, 255, 255))).toBe(1);
    expect(pixelDistance(bytes(10, 0, 0, 0), bytes(0, 0, 0, 0))).toBeCloseTo(5 / 255, 12);
  });

  test("nearest distances find the nearest, wherever it is", () => {
    const set = [bytes(255, 255), bytes(3, 4), bytes(200, 0)];
    const [origin, far, copy] = nearestDistances([bytes(0, 0), bytes(255, 250), bytes(200, 0)], set);
    expect(origin).toBeCloseTo(Math.sqrt(25 / 2) / 255, 12);
    expect(far).toBeCloseTo(Math.sqrt(25 / 2) / 255, 12);
    expect(copy).toBe(0);
  });
});
