export { caption, captionCorpus, plainCaption, styleWords } from "./captions.ts";
export { type Dataset, type Icons, loadIcons, type Sample } from "./dataset.ts";
export { type BuildIconsOptions, buildIcons, type IconRow, type IconsSummary } from "./icons.ts";
export { contactSheet, type SheetOptions, type SheetPicture } from "./sheet.ts";
export { ANNOTATIONS, STYLES } from "./sources.ts";
