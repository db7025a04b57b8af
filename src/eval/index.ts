export { evaluationsOf } from "./draw.ts";
export { type EvalOptions, type EvalResult, evaluate, type SetName, type Split } from "./evaluate.ts";
export { modelHash } from "./hash.ts";
export { type ImageFeatures, Judge } from "./judge.ts";
export { clipScore, frechetDistance, nearestDistances, pairwiseDistance, psnr, recallAt } from "./metrics.ts";
export type { QualityScores, SetScores } from "./score.ts";
export type { ReferenceOptions } from "./teacher.ts";
