import { expect, test } from "vitest";
import { ago, duration, evaluations, figure, speed, workMs } from "../../web/format.ts";
import { chartsOf, withPart } from "../../web/run-log.ts";

const row = (step: number, loss = 1) => ({ step, loss });
const part = (rows: { step: number; loss: number }[], from: number) => ({
  rows,
  from,
  next: from + 9,
  more: false,
});

test("rows of a log: added, done again after a resume, written anew", () => {
  const first = withPart([], part([row(0), row(10)], 0));
  const second = withPart(first, part([row(20)], 9));
  expect(second.map(({ step }) => step)).toEqual([0, 10, 20]);
  expect(withPart(second, part([row(10, 2), row(20, 2)], 18))).toEqual([row(0), row(10, 2), row(20, 2)]);
  expect(withPart(second, part([row(5)], 0))).toEqual([row(5)]);
});

test("charts put together what belongs together", () => {
  const rows: Record<string, number>[] = [
    { step: 0, loss: 1, mse: 2, discriminator_accuracy_real: 0.5, accuracy_1: 0, discriminator_grad_norm: 3 },
    { step: 1, loss: 3, mse: 2, learning_rate: 1e-5, grad_norm: 2 },
  ];
  const charts = chartsOf(rows, 0.5);
  expect(charts.map(({ title, lines }) => `${title}: ${lines.map(({ name }) => name).join(" ")}`)).toEqual([
    "Loss: loss mse",
    "Discriminator accuracy: discriminator_accuracy_real",
    "Accuracy: accuracy_1",
    "Gradient norm: discriminator_grad_norm grad_norm",
    "Learning rate: learning_rate",
  ]);
  // (0.25·1 + 0.5·3) / 0.75
  expect(charts[0].lines[0].points).toEqual([
    [0, 1],
    [1, expect.closeTo(7 / 3)],
  ]);
  expect(charts[0].lines[1].points.map(([, value]) => value)).toEqual([2, 2]);
});

test("numbers as people read them", () => {
  expect([4.2, 44, 640, 12_300, 200_000].map(duration)).toEqual([
    "4.2 ms",
    "44 ms",
    "0.64 s",
    "12 s",
    "3 min",
  ]);
  expect([speed(100, 1200), speed(100, 180), speed(100, 101), speed(200, 100)]).toEqual([
    "12× faster",
    "1.8× faster",
    "as fast",
    "2.0× slower",
  ]);
  expect([12_500, 0.275210082, 3.2e-7, 0].map(figure)).toEqual(["12,500", "0.275", "3.2e-7", "0"]);
  expect([5, 300, 7200, 400_000].map(ago)).toEqual(["5 s", "5 min", "2 h", "5 days"]);
  expect(workMs({ seconds: { load: 9, encode: 0.001, denoise: 0.01, decode: 0.002 } })).toBeCloseTo(13);
  expect([
    evaluations({ steps: 32, guidance_scale: 4 }),
    evaluations({ steps: 4, guidance_scale: 1 }),
  ]).toEqual([64, 4]);
});
