/** @file Symbolic dimensions: equal expressions are one object, and their value is that of ordinary arithmetic. */

import { describe, expect, test } from "vitest";
import {
  addDim,
  type Dim,
  dimTerms,
  divideDim,
  evalDim,
  floorDivDim,
  isStatic,
  mulDim,
  type SymDim,
  sizeDim,
  staticShape,
  symbol,
} from "../../src/graph/index.ts";
import { Generator } from "../../src/tensor/index.ts";

const [B, H, W] = ["B", "H", "W"].map(symbol);

describe("expressions", () => {
  test("numbers stay numbers", () => {
    expect([addDim(2, 3), mulDim(2, 3), floorDivDim(7, 2), floorDivDim(-7, 2)]).toEqual([5, 6, 3, -4]);
    expect([divideDim(6, 3), divideDim(7, 3)]).toEqual([2, undefined]);
  });

  test("equal ones are the same object, however they were written", () => {
    expect(symbol("H")).toBe(H);
    expect(addDim(H, W)).toBe(addDim(W, H));
    expect(addDim(addDim(H, 1), -1)).toBe(H);
    expect(mulDim(mulDim(2, H), mulDim(W, 3))).toBe(mulDim(6, mulDim(W, H)));
    expect(mulDim(addDim(H, 1), addDim(H, -1))).toBe(addDim(mulDim(H, H), -1));
    expect(addDim(H, H)).toBe(mulDim(2, H));
    expect(floorDivDim(addDim(H, 1), 2)).toBe(floorDivDim(addDim(H, 1), 2));
    expect(addDim(H, 1)).not.toBe(H);
  });

  test("what cancels is a number", () => {
    expect(addDim(H, mulDim(-1, H))).toBe(0);
    expect(addDim(addDim(H, 5), mulDim(-1, H))).toBe(5);
    expect(mulDim(0, H)).toBe(0);
    expect(floorDivDim(addDim(mulDim(H, 2), addDim(1, mulDim(-2, H))), 2)).toBe(0);
  });

  test("print as sums of products", () => {
    expect(String(addDim(mulDim(mulDim(2, H), W), addDim(B, 3)))).toBe("3+B+2*H*W");
    expect(String(floorDivDim(addDim(H, 1), 2))).toBe("floor((1+H)/2)");
    expect(String(mulDim(H, floorDivDim(mulDim(H, W), 2)))).toBe("H*floor((H*W)/2)");
  });

  test("a symbol's name is a word, so that it cannot be taken for an expression", () => {
    for (const name of ["", "2", "H+1", "H*W", "floor((H)/2)", "a b"])
      expect(() => symbol(name), name).toThrow(/dimension.*letters/);
    expect(String(symbol("batch_size2"))).toBe("batch_size2");
  });
});

describe("division", () => {
  test("floor takes out what divides", () => {
    expect(floorDivDim(mulDim(8, H), 8)).toBe(H);
    expect(floorDivDim(addDim(mulDim(4, H), 3), 2)).toBe(addDim(mulDim(2, H), 1));
    expect(floorDivDim(addDim(H, 4), 2)).toBe(addDim(floorDivDim(H, 2), 2));
    expect(floorDivDim(H, 1)).toBe(H);
  });

  test("exact division knows when it is not", () => {
    expect(divideDim(mulDim(mulDim(6, H), W), mulDim(2, W))).toBe(mulDim(3, H));
    expect(divideDim(addDim(mulDim(H, W), W), W)).toBe(addDim(H, 1));
    expect(divideDim(H, H)).toBe(1);
    expect(divideDim(addDim(H, 1), addDim(H, 1))).toBe(1);
    expect(divideDim(H, 2)).toBeUndefined();
    expect(divideDim(H, W)).toBeUndefined();
    expect(divideDim(mulDim(H, W), addDim(H, 1))).toBeUndefined();
    expect(divideDim(12, H)).toBeUndefined();
  });
});

describe("values", () => {
  test("a symbol without a value is named", () => {
    expect(evalDim(addDim(mulDim(H, 2), 1), { H: 7 })).toBe(15);
    expect(() => evalDim(addDim(H, 1), { W: 3 })).toThrow("dimension 1+H: no value for symbol H");
    expect(() => evalDim(symbol("constructor"), {})).toThrow("no value for symbol constructor");
  });

  test("300 random expressions against arithmetic", () => {
    const g = new Generator(7);
    const env = { B: 3, H: 17, W: 10 };
    let symbolic = 0;
    for (let i = 0; i < 300; i++) {
      const pool: [Dim, number][] = [
        [B, 3],
        [H, 17],
        [W, 10],
        [g.integer(9) - 4, 0],
      ];
      pool[3][1] = pool[3][0] as number;
      const pick = () => pool[g.integer(pool.length)];
      for (let n = 0; n < 6; n++) {
        const [[a, x], [b, y]] = [pick(), pick()];
        const by = 1 + g.integer(4);
        const kind = g.integer(4);
        if (kind === 0) pool.push([addDim(a, b), x + y]);
        else if (kind === 1) pool.push([mulDim(a, b), x * y]);
        else if (kind === 2) pool.push([floorDivDim(a, by), Math.floor(x / by)]);
        else {
          const exact = divideDim(mulDim(a, by), by);
          expect(exact).toBe(a);
        }
      }
      for (const [d, value] of pool) {
        expect(evalDim(d, env), String(d)).toBe(value + 0);
        if (typeof d !== "number") symbolic++;
      }
    }
    expect(symbolic).toBeGreaterThan(1000);
  });

  test("terms give the value again", () => {
    const d = addDim(mulDim(3, mulDim(H, floorDivDim(addDim(W, 1), 4))), addDim(B, -2)) as SymDim;
    const env = { B: 3, H: 17, W: 10 };
    const value = dimTerms(d).reduce((sum, { coefficient, factors }) => {
      const product = factors.reduce(
        (p, f) => p * ("symbol" in f ? env[f.symbol as "H"] : Math.floor(evalDim(f.floor, env) / f.by)),
        coefficient,
      );
      return sum + product;
    }, 0);
    expect(value).toBe(3 * 17 * 2 + 3 - 2);
  });
});

test("sizes and static shapes", () => {
  expect(sizeDim([2, 3, 4])).toBe(24);
  expect(sizeDim([])).toBe(1);
  expect(sizeDim([B, 2, H])).toBe(mulDim(2, mulDim(B, H)));
  expect([isStatic([1, 2]), isStatic([1, B])]).toEqual([true, false]);
  expect(staticShape([1, 2])).toEqual([1, 2]);
  expect(() => staticShape([2, addDim(H, 1)])).toThrow("expected a static shape, got [2,1+H]");
});
