import { defineConfig, type ViteUserConfig } from "vitest/config";

const config: ViteUserConfig = defineConfig({
  test: {
    projects: [
      {
        test: {
          name: "unit",
          include: ["test/**/*.test.ts"],
          exclude: ["test/runtime/browser/**"],
          environment: "node",
          testTimeout: 120_000, // sessions of ONNX Runtime share two cores with each other
          hookTimeout: 120_000,
        },
      },
    ],
    maxWorkers: 2,
  },
});

export default config;
