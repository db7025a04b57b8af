/** @file Names of fields: requests and answers write them with underscores, the program does not. */

type Camel<S> = S extends `${infer A}_${infer B}` ? `${A}${Capitalize<Camel<B>>}` : S;
type Snake<S> = S extends `${infer A}${infer B}`
  ? `${A extends Lowercase<A> ? A : `_${Lowercase<A>}`}${Snake<B>}`
  : S;

/** `clip_skip` becomes `clipSkip`; values stay as they are. */
export function camelCased<T extends object>(fields: T): { [K in keyof T as Camel<K>]: T[K] } {
  return renamed(fields, (name) => name.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase()));
}

/** `clipSkip` becomes `clip_skip`; values stay as they are. */
export function snakeCased<T extends object>(fields: T): { [K in keyof T as Snake<K>]: T[K] } {
  return renamed(fields, (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`));
}

function renamed<T>(fields: object, name: (key: string) => string): T {
  return Object.fromEntries(Object.entries(fields).map(([key, value]) => [name(key), value])) as T;
}
