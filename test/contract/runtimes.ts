/** @file The runtimes that the contract suites run on. WebGPU needs a Vulkan driver; SwiftShader's will do. */

import { existsSync } from "node:fs";
import type { Device } from "../../src/runtime/index.ts";

export interface Runtime {
  name: string;
  device: Device;
  /** Largest error relative to the largest value. */
  tolerance: number;
  gradientTolerance: number;
  /** Why it cannot run here. */
  skip?: string;
}

const SWIFTSHADER = "/usr/lib/chromium/vk_swiftshader_icd.json";

function webgpuMissing(): string | undefined {
  if (process.env.VK_ICD_FILENAMES || process.env.FEWSTEP_GPU) return undefined;
  if (!existsSync(SWIFTSHADER))
    return "no GPU: set FEWSTEP_GPU=1 where there is one, or install chromium for SwiftShader";
  process.env.VK_ICD_FILENAMES = SWIFTSHADER;
  process.env.XDG_RUNTIME_DIR ??= "/tmp";
  return undefined;
}

export const runtimes: readonly Runtime[] = [
  { name: "cpu", device: "cpu", tolerance: 1e-5, gradientTolerance: 2e-5 },
  // WGSL allows sin and cos an absolute error of 2^-11.
  { name: "webgpu", device: "webgpu", tolerance: 5e-4, gradientTolerance: 2e-4, skip: webgpuMissing() },
];
