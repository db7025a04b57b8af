export { type EmitOptions, type ExternalTensor, emitOnnx } from "./emit.ts";
export { ProtoWriter } from "./proto.ts";
