/** @file The samplers, one line each. */

export { ddim } from "./ddim.ts";
export { dpmpp2m } from "./dpmpp_2m.ts";
export { dpmpp2mSde } from "./dpmpp_2m_sde.ts";
export { euler } from "./euler.ts";
export { eulerAncestral } from "./euler_ancestral.ts";
export { heun } from "./heun.ts";
export { lcm } from "./lcm.ts";
export { tcd } from "./tcd.ts";
export { uniPC } from "./uni_pc.ts";
