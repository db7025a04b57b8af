export * from "./layers.ts";
export { type Adapter, loraScope } from "./lora.ts";
export { located, rootScope, type Scope } from "./scope.ts";
