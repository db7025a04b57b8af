/** @file Files that are no safetensors, told from their first eight bytes. Nothing else of them is read. */

const OTHER = "get the .safetensors version of it";

const FORMATS: readonly (readonly [text: string, ...starts: string[]])[] = [
  [
    `a PyTorch pickle, which can run code when it is opened; fewstep never does, ${OTHER}`,
    "PK\u0003\u0004", // torch.save since 1.6: a zip archive with a pickle inside
    ...["\u0002", "\u0003", "\u0004", "\u0005"].map((protocol) => `\u0080${protocol}`),
  ],
  [`a GGUF file, whose quantised weights fewstep cannot read; ${OTHER}`, "GGUF"],
  [`an HDF5 file; ${OTHER}`, "\u0089HDF"],
  ["a pointer of Git LFS in place of the file; fetch the file itself, with git lfs pull", "version "],
  ["a web page; fetch the file itself", "<!DOCTYP", "<!doctyp", "<html"],
];

/** What another file is, and what to do; undefined when nothing speaks against safetensors. */
export function foreignFormat(head: Uint8Array): string | undefined {
  const text = String.fromCharCode(...head.subarray(0, 8));
  return FORMATS.find(([, ...starts]) => starts.some((start) => text.startsWith(start)))?.[0];
}
