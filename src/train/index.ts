export { type FitOptions, fit, type Job, type Progress, type Watch } from "./fit.ts";
export { type Material, type OpenOptions, openMaterial, sideStep } from "./material.ts";
export {
  type AdamWOptions,
  adamw,
  type LearningRate,
  learningRateAt,
  type MuonOptions,
  muon,
  type Optimizer,
  optimizerOf,
} from "./optimizer.ts";
export {
  type Loss,
  ParallelTrainer,
  type Pass,
  passGraph,
  replicasFor,
  trainedBy,
} from "./parallel.ts";
export { fieldError, hashOf, parseRecipe, type Recipe, readRecipe, recipeFields } from "./recipe.ts";
export { type TrainOptions, train } from "./run.ts";
export { type StepGraph, type StepOptions, trainStep } from "./step.ts";
export { batchGenerator, captionFeeds, conditionFeeds } from "./tasks.ts";
export { type UNetBatch, unetLoss } from "./unet.ts";
