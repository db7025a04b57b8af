/** @file CLIP's tokenizer against transformers, with both ways of padding. */

import { describe, expect, test } from "vitest";
import "../../src/platform/node.ts";
import { readTokenizer } from "../../src/pipelines/index.ts";
import { chunkPrompt } from "../../src/tokenizers/index.ts";
import { goldenJson, goldenPath } from "./golden.ts";

type Row = { text: string; all: number[]; ids: number[] };
const golden = (await goldenJson("tokenizer")) as Record<string, Row[]>;

describe.each(Object.entries(golden))("%s", async (name, rows) => {
  const tokenizer = await readTokenizer(goldenPath(`tiny-sdxl/${name}`));

  test.each(rows)("$text", ({ text, all, ids }) => {
    expect(tokenizer.encode(text)).toEqual(all);
    const batch = tokenizer.encodeBatch([text]);
    expect(Array.from(batch.ids.data, Number)).toEqual(ids);
    expect(Array.from(batch.end.data, Number)).toEqual([ids.indexOf(tokenizer.end)]); // where CLIP's encoders pool
    const { chunks, lost } = chunkPrompt(tokenizer, text, "none");
    expect(chunks).toEqual([{ ids, weights: ids.map(() => 1) }]);
    expect(lost).toBe(all.length > ids.length - 2);
  });

  test("a batch", () => {
    const { ids } = tokenizer.encodeBatch(rows.map(({ text }) => text));
    expect(ids.shape).toEqual([rows.length, tokenizer.maxLength]);
    expect(Array.from(ids.data, Number)).toEqual(rows.flatMap((row) => row.ids));
  });
});
