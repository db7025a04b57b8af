export { ClipTokenizer, type TokenizerFiles, trainBpe } from "./clip.ts";
