/** @file Captions of icons: one fixed form for judging, many forms for training. */

import type { IconRow } from "./icons.ts";
import { STYLES } from "./sources.ts";

const WORDS = new Map(STYLES.map((s) => [s.style, s.words]));

/** The canonical caption: "red apple, noto style". */
export function plainCaption({ label, style }: Pick<IconRow, "label" | "style">): string {
  return `${label}, ${styleWords(style)} style`;
}

/** The words of a style in captions. */
export function styleWords(style: string): string {
  return WORDS.get(style) ?? style.replaceAll("-", " ");
}

function article(label: string): string {
  return `${/^[aeiou]/.test(label) ? "an" : "a"} ${label}`;
}

const FORMS: readonly ((label: string, style: string) => string)[] = [
  (label, style) => `${label}, ${style} style`,
  (label, style) => `${article(label)}, ${style} style`,
  (label, style) => `${article(label)} in ${style} style`,
  (label, style) => `${style} style ${label}`,
  (label, style) => `an emoji of ${article(label)} in ${style} style`,
  (label, style) => `a ${style} style icon of ${article(label)}`,
];
const UNSTYLED: readonly ((label: string) => string)[] = [
  (label) => label,
  article,
  (label) => `an emoji of ${article(label)}`,
  (label) => `an icon of ${article(label)}`,
];

/** Text for learning a tokenizer: every form of every row, keywords included. */
export function captionCorpus(rows: readonly Pick<IconRow, "label" | "style" | "keywords">[]): string[] {
  return rows.flatMap((row, i) => [
    FORMS[i % FORMS.length](row.label, styleWords(row.style)),
    UNSTYLED[i % UNSTYLED.length](row.label),
    ...row.keywords,
  ]);
}

/**
 * A caption for training. `random` gives numbers in [0, 1). One in ten names a keyword after the label, one in
 * twenty a keyword alone; one in six leaves the style out.
 */
export function caption(row: Pick<IconRow, "label" | "style" | "keywords">, random: () => number): string {
  const pick = <T>(list: readonly T[]) => list[Math.floor(random() * list.length)];
  const extra = random();
  const keyword = row.keywords.length > 0 ? pick(row.keywords) : undefined;
  let label = row.label;
  if (keyword && extra < 0.05) label = keyword;
  else if (keyword && extra < 0.15 && !label.includes(keyword)) label = `${label} with ${keyword}`;
  return random() < 1 / 6 ? pick(UNSTYLED)(label) : pick(FORMS)(label, styleWords(row.style));
}
