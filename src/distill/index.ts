export { type DistillOptions, type DistillProgress, distill } from "./distill.ts";
export { type DistillPlan, type PhaseEstimate, planDistillation } from "./plan.ts";
export { type DistillRecipe, parseDistillRecipe, readDistillRecipe } from "./recipe.ts";
