/** @file What stands behind the APIs. */

import type { Catalogue } from "../catalogue.ts";
import type { Jobs } from "../jobs.ts";

export interface Backend {
  jobs: Jobs;
  catalogue: Catalogue;
  /** Gets what went wrong in the program itself. */
  onError(error: unknown): void;
}
