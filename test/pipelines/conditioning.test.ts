import { expect, test } from "vitest";
import { timeIds } from "../../src/pipelines/conditioning.ts";

test("without sizes the model is told those of the picture", () => {
  const ids = [48, 64, 0, 0, 48, 64];
  expect(timeIds({}, [48, 64])).toEqual({ positive: ids, negative: ids });
});

test("the negative prompt has those of the prompt, unless one is given", () => {
  const options = { originalSize: [1, 2], cropsCoordsTopLeft: [3, 4], targetSize: [5, 6] } as const;
  const positive = [1, 2, 3, 4, 5, 6];
  expect(timeIds(options, [8, 8])).toEqual({ positive, negative: positive });
  expect(timeIds({ ...options, negativeTargetSize: [7, 8] }, [8, 8])).toEqual({
    positive,
    negative: [1, 2, 0, 0, 7, 8],
  });
});

test.each([[[-1, 0]], [[Number.NaN, 0]], [[1]], [[1, 2, 3]]])("%j is refused", (pair) => {
  const originalSize = pair as unknown as [number, number];
  expect(() => timeIds({ originalSize }, [8, 8])).toThrow(/each is two numbers from 0/);
  expect(() => timeIds({ negativeOriginalSize: originalSize }, [8, 8])).toThrow(/each is two numbers from 0/);
});
