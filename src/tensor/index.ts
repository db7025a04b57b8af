export * from "./dtype.ts";
export * from "./host.ts";
export * from "./rng.ts";
