export {
  type Chunk,
  chunkPrompt,
  MOST_CHUNKS,
  PROMPT_WEIGHTINGS,
  type PromptWeighting,
} from "./chunks.ts";
export { ClipTokenizer, type TokenizerFiles, trainBpe } from "./clip.ts";
export { parseEmphasis, parseTokenWeights, type Weighted } from "./emphasis.ts";
