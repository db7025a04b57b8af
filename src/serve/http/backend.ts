/** @file What stands behind the APIs. */

import type { Catalogue } from "../catalogue.ts";
import type { Jobs } from "../jobs.ts";
import type { Runs } from "../runs.ts";

export interface Backend {
  jobs: Jobs;
  catalogue: Catalogue;
  runs?: Runs;
  /** Gets what went wrong in the program itself. */
  onError(error: unknown): void;
}
