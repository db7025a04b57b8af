export * from "./dtype.ts";
export * from "./host.ts";
