import { expect, test } from "vitest";
import { type SamplingSettings, samplingMetadata, samplingSettings } from "../../src/pipelines/index.ts";

const settings: SamplingSettings = {
  steps: 1,
  predictionType: "sample",
  spacing: "trailing",
  guidance: 1.5,
  sampler: "euler",
};

test("settings survive a file's metadata", () => {
  const metadata = samplingMetadata(settings);
  expect(metadata).toEqual({
    "fewstep.steps": "1",
    "fewstep.prediction_type": "sample",
    "fewstep.timestep_spacing": "trailing",
    "fewstep.guidance": "1.5",
    "fewstep.sampler": "euler",
  });
  expect(samplingSettings({ format: "pt", ...metadata }, "x")).toEqual(settings);
  expect(samplingSettings(samplingMetadata({ steps: 4, guidance: 0 }), "x")).toEqual({
    steps: 4,
    guidance: 0,
  });
});

test("a file without them has none", () => {
  expect(samplingSettings({}, "sdxl_lightning_4step_unet.safetensors")).toBeUndefined();
  expect(samplingSettings({ format: "pt", "fewstep.config": "{}" }, "x")).toBeUndefined();
});

test.each([
  ["fewstep.steps", "0", "whole numbers from 1 to 1000"],
  ["fewstep.steps", "4.0", "whole numbers"],
  ["fewstep.steps", "1001", "whole numbers"],
  ["fewstep.prediction_type", "x0", "epsilon, v_prediction, sample"],
  ["fewstep.timestep_spacing", "__proto__", "linspace, leading, trailing"],
  ["fewstep.guidance", "-1", "numbers from 0 to 100"],
  ["fewstep.guidance", "1e3", "numbers from 0 to 100"],
  ["fewstep.sampler", "constructor", "ddim, dpmpp_2m, dpmpp_2m_sde, euler, "],
  ["fewstep.sampler", "", "ddim, dpmpp_2m, dpmpp_2m_sde, euler, "],
])("%s %j is refused", (key, value, accepted) => {
  const read = () => samplingSettings({ [key]: value }, "a.safetensors");
  expect(read).toThrow(`a.safetensors: ${key} is ${JSON.stringify(value)}; accepted are ${accepted}`);
});

test("a value of many lines stays one short sentence", () => {
  const read = () => samplingSettings({ "fewstep.steps": "4\n\u001b[31m".repeat(100) }, "a.safetensors");
  expect(read).toThrow(/^\P{Cc}{1,200}$/u);
});

test("settings that could not be read back are not written", () => {
  expect(() => samplingMetadata({ steps: 2.5 })).toThrow('sampling settings: fewstep.steps is "2.5"');
});
