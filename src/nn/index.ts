export * from "./layers.ts";
export { located, rootScope, type Scope } from "./scope.ts";
