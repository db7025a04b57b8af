export { type CompileOptions, compile, type Device, type Program } from "./program.ts";
