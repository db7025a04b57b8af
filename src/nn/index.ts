export * from "./layers.ts";
export { type Adapter, type Change, changeBranch, changedScope, loraScope } from "./lora.ts";
export { located, rootScope, type Scope } from "./scope.ts";
