export {
  aspectBuckets,
  type BatchPlace,
  type BatchSampler,
  type Bucket,
  type BucketOptions,
  batchSampler,
} from "./buckets.ts";
export { caption, captionCorpus, plainCaption, styleWords } from "./captions.ts";
export { type Dataset, type Icons, loadIcons } from "./dataset.ts";
export type { Convention, Skipped } from "./folder.ts";
export { type BuildIconsOptions, buildIcons, type IconRow, type IconsSummary } from "./icons.ts";
export { type LatentCache, latentCache } from "./latents.ts";
export { type LoadPicturesOptions, loadPictures, type Pictures } from "./pictures.ts";
export { contactSheet, type SheetOptions, type SheetPicture } from "./sheet.ts";
export { ANNOTATIONS, STYLES } from "./sources.ts";
