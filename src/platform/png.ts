/**
 * @file Text in PNG files: the tEXt, zTXt and iTXt chunks (PNG specification, third edition, §11.3.3).
 *
 * Pixels are encoded elsewhere; this adds chunks to, and reads them from, a finished file. Input is hostile
 * until checked: lengths, checksums, and the size that compressed text grows to.
 */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
/** Text that all chunks of one file may hold together once decompressed, in bytes. */
const TEXT_LIMIT = 16 * 2 ** 20;

export interface PngText {
  /** 1–79 latin-1 characters; `parameters` is where A1111-style programs put the generation settings. */
  keyword: string;
  text: string;
}

export interface PngInfo {
  /** Pixels. */
  width: number;
  /** Pixels. */
  height: number;
  /** Every text chunk in file order. */
  texts: PngText[];
}

interface Chunk {
  type: string;
  data: Uint8Array;
  /** Offset of the byte after the chunk's checksum. */
  end: number;
}

export function isPng(bytes: Uint8Array): boolean {
  return SIGNATURE.every((b, i) => bytes[i] === b);
}

/**
 * The file with text chunks after its header: tEXt when the text is latin-1, else iTXt, both uncompressed.
 * @throws when `png` is not a PNG, or a keyword or text holds what the format cannot.
 */
export function addPngText(png: Uint8Array, texts: readonly PngText[]): Uint8Array {
  const header = chunks(png).next().value as Chunk;
  return concatBytes([png.subarray(0, header.end), ...texts.map(textChunk), png.subarray(header.end)]);
}

/**
 * Size and text chunks of a PNG file.
 * @throws when the bytes are not a whole PNG, a checksum is wrong, or the text is larger than 16 MiB.
 */
export async function readPng(png: Uint8Array): Promise<PngInfo> {
  const info: PngInfo = { width: 0, height: 0, texts: [] };
  let room = TEXT_LIMIT;
  for (const { type, data } of chunks(png)) {
    if (type === "IHDR") {
      const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
      info.width = view.getUint32(0);
      info.height = view.getUint32(4);
    } else if (type === "tEXt" || type === "zTXt" || type === "iTXt") {
      const entry = await parseText(type, data, room);
      room -= entry.keyword.length + entry.text.length;
      info.texts.push(entry);
    }
  }
  return info;
}

/** Walks the chunks, checking bounds, order of the first and last, and checksums. */
function* chunks(png: Uint8Array): Generator<Chunk, void, void> {
  if (!isPng(png)) throw new Error("not a PNG file: the first 8 bytes are not the PNG signature");
  const view = new DataView(png.buffer, png.byteOffset, png.byteLength);
  for (let at = SIGNATURE.length, type = ""; type !== "IEND"; ) {
    if (at + 12 > png.length) throw new Error(`PNG is truncated: it ends at byte ${png.length} without IEND`);
    const length = view.getUint32(at);
    const first = at === SIGNATURE.length;
    type = latin1(png.subarray(at + 4, at + 8));
    if (!/^[A-Za-z]{4}$/.test(type)) throw new Error(`PNG is damaged: no chunk name at byte ${at + 4}`);
    if (first !== (type === "IHDR") || (first && length !== 13))
      throw new Error("PNG is damaged: its first chunk, and only that one, must be IHDR with 13 bytes");
    const end = at + 12 + length;
    if (end > png.length)
      throw new Error(
        `PNG is truncated: ${type} at byte ${at} has ${length} bytes, the file ends after ${png.length - at - 8}`,
      );
    if (view.getUint32(end - 4) !== crc32(png.subarray(at + 4, end - 4)))
      throw new Error(`PNG is damaged: checksum of ${type} at byte ${at} does not match`);
    yield { type, data: png.subarray(at + 8, end - 4), end };
    at = end;
  }
}

function textChunk({ keyword, text }: PngText): Uint8Array {
  if (!/^[\x20-\x7e\xa1-\xff]{1,79}$/.test(keyword))
    throw new Error(
      `PNG text keyword must be 1–79 printable latin-1 characters, got ${JSON.stringify(keyword)}`,
    );
  if (text.includes("\0")) throw new Error(`PNG text "${keyword}" holds a NUL character: remove it`);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the range is that of latin-1
  if (/^[\x01-\xff]*$/.test(text)) return chunk("tEXt", [bytesOf(`${keyword}\0${text}`)]);
  // uncompressed (flag and method 0), language and translated keyword empty
  return chunk("iTXt", [bytesOf(`${keyword}\0\0\0\0\0`), new TextEncoder().encode(text)]);
}

async function parseText(type: string, data: Uint8Array, room: number): Promise<PngText> {
  const damaged = (): Error => new Error(`PNG is damaged: ${type} chunk is malformed`);
  const field = (from: number): number => {
    const end = data.indexOf(0, from);
    if (end < 0) throw damaged();
    return end;
  };
  const nul = field(0);
  if (nul < 1 || nul > 79) throw damaged();
  const keyword = latin1(data.subarray(0, nul));
  if (type === "tEXt") return { keyword, text: latin1(limit(data.subarray(nul + 1), room)) };
  if (type === "zTXt") {
    if (data[nul + 1] !== 0) throw damaged(); // compression method: zlib is the only one
    return { keyword, text: latin1(await inflate(data.subarray(nul + 2), room)) };
  }
  const [compressed, method] = [data[nul + 1], data[nul + 2]];
  if (compressed > 1 || method !== 0) throw damaged();
  const text = data.subarray(field(field(nul + 3) + 1) + 1); // after language and translated keyword
  const utf8 = compressed ? await inflate(text, room) : limit(text, room);
  return { keyword, text: new TextDecoder().decode(utf8) };
}

function limit(bytes: Uint8Array, room: number): Uint8Array {
  if (bytes.length > room) throw new Error(`PNG holds more than ${TEXT_LIMIT} bytes of text`);
  return bytes;
}

/** Decompresses zlib data, stopping as soon as the output outgrows `room`. */
async function inflate(data: Uint8Array, room: number): Promise<Uint8Array> {
  const stream = new Blob([data as Uint8Array<ArrayBuffer>]).stream();
  const parts: Uint8Array[] = [];
  let size = 0;
  try {
    for await (const part of stream.pipeThrough(new DecompressionStream("deflate"))) {
      size += part.length;
      if (size > room) break;
      parts.push(part);
    }
  } catch {
    throw new Error("PNG is damaged: compressed text cannot be decompressed");
  }
  if (size > room) throw new Error(`PNG holds more than ${TEXT_LIMIT} bytes of text`);
  return concatBytes(parts);
}

function chunk(type: string, data: readonly Uint8Array[]): Uint8Array {
  const body = concatBytes([bytesOf(type), ...data]);
  const out = new Uint8Array(body.length + 8);
  const view = new DataView(out.buffer);
  view.setUint32(0, body.length - 4);
  out.set(body, 4);
  view.setUint32(body.length + 4, crc32(body));
  return out;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

/** PNG specification, annex D. */
function crc32(bytes: Uint8Array): number {
  let c = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) c = CRC_TABLE[(c ^ bytes[i]) & 0xff] ^ (c >>> 8);
  return ~c >>> 0;
}

function bytesOf(text: string): Uint8Array {
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

/** One character per byte; `TextDecoder("latin1")` would read windows-1252. */
function latin1(bytes: Uint8Array): string {
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return text;
}

function concatBytes(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
