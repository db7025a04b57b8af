export { type DistillOptions, type DistillProgress, distill } from "./distill.ts";
export { type DistillPlan, type PhaseEstimate, planDistillation } from "./distill-plan.ts";
export { type DistillRecipe, parseDistillRecipe, readDistillRecipe } from "./distill-recipe.ts";
export { type FitOptions, fit, type Job, type Progress } from "./fit.ts";
export { type AdamWOptions, adamw, type LearningRate, learningRateAt, type Optimizer } from "./optimizer.ts";
export { ParallelTrainer } from "./parallel.ts";
export { parseRecipe, type Recipe, readRecipe } from "./recipe.ts";
export { type TrainOptions, train } from "./run.ts";
export { type StepGraph, type StepOptions, trainStep } from "./step.ts";
