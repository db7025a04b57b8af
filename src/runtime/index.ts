export { compileLoop } from "./loop.ts";
export { type CompileOptions, compile, type Device, type Program, type Runnable } from "./program.ts";
