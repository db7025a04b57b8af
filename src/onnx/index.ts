export { type ExternalTensor, emitOnnx } from "./emit.ts";
export { ProtoWriter } from "./proto.ts";
