export { type EvalOptions, type EvalResult, evaluate, type SetScores } from "./evaluate.ts";
export { type ImageFeatures, Judge } from "./judge.ts";
export { clipScore, frechetDistance, nearestDistances, psnr, recallAt } from "./metrics.ts";
