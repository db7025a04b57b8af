export { blobsOf, localPath, repoOf } from "./local.ts";
export { type Pulled, type PullOptions, pull } from "./pull.ts";
