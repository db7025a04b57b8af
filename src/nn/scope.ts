/** @file A scope is a place in a checkpoint: layers ask it for their parameters, and its path is the key. */

import { type Init, parameter, type Value } from "../graph/index.ts";

export interface Scope {
  /** Dotted path, "" at the root. */
  readonly path: string;
  at(name: string | number): Scope;
  param(name: string, shape: readonly number[], init: Init): Value;
}

/** A scope whose parameters are leaves of the graph. */
export function rootScope(path = ""): Scope {
  const key = (name: string | number) => (path === "" ? `${name}` : `${path}.${name}`);
  return {
    path,
    at: (name) => rootScope(key(name)),
    param: (name, shape, init) => parameter(key(name), shape, init),
  };
}

/** Prefixes an error with the place it happened in. */
export function located<T>(scope: Scope, build: () => T): T {
  try {
    return build();
  } catch (error) {
    if (error instanceof Error && !error.message.startsWith("at "))
      throw new Error(`at ${scope.path}: ${error.message}`, { cause: error });
    throw error;
  }
}
