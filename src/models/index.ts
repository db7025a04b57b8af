export * from "./clip.ts";
export * from "./discriminator.ts";
export * from "./tiny.ts";
export * from "./unet.ts";
export * from "./vae.ts";
