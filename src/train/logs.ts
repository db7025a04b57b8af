/** @file Training logs: JSON lines, and TensorBoard event files. */

import { appendFileSync, existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ProtoWriter } from "../onnx/index.ts";

export type LogRow = { step: number } & Record<string, number>;

/** Appends rows to `<folder>/log.jsonl` and to a TensorBoard event file beside it. */
export class Logs {
  private readonly jsonl: string;
  private readonly events: string;

  /** @param from rows of this step and later are removed: the run is resumed before them. */
  constructor(folder: string, from: number) {
    mkdirSync(folder, { recursive: true });
    this.jsonl = join(folder, "log.jsonl");
    this.events = join(folder, `events.out.tfevents.${String(from).padStart(10, "0")}.fewstep`);
    if (existsSync(this.jsonl)) {
      const kept = readFileSync(this.jsonl, "utf8")
        .split("\n")
        .filter((line) => line !== "" && isBefore(line, from));
      writeFileSync(`${this.jsonl}.tmp`, kept.map((l) => `${l}\n`).join(""));
      renameSync(`${this.jsonl}.tmp`, this.jsonl);
    }
    const now = Date.now() / 1000;
    const version = new ProtoWriter().double(1, now).string(3, "brain.Event:2");
    // A session that starts: TensorBoard drops what earlier files have of this step and later ones.
    const start = new ProtoWriter().double(1, now).int(2, from).message(7, new ProtoWriter().int(1, 1));
    writeFileSync(this.events, Buffer.concat([record(version), record(start)]));
  }

  write(row: LogRow): void {
    appendFileSync(this.jsonl, `${JSON.stringify(row)}\n`);
    const summary = new ProtoWriter();
    for (const [tag, value] of Object.entries(row))
      if (tag !== "step") summary.message(1, new ProtoWriter().string(1, tag).float(2, value));
    const event = new ProtoWriter()
      .double(1, Date.now() / 1000)
      .int(2, row.step)
      .message(5, summary);
    appendFileSync(this.events, record(event));
  }
}

function isBefore(line: string, step: number): boolean {
  try {
    return (JSON.parse(line) as LogRow).step < step;
  } catch {
    return false; // the last line of a killed run may be cut
  }
}

/** TFRecord framing: length, its checksum, the data, its checksum. */
function record(message: ProtoWriter): Uint8Array {
  const data = message.finish();
  const out = new Uint8Array(data.length + 16);
  const view = new DataView(out.buffer);
  view.setBigUint64(0, BigInt(data.length), true);
  view.setUint32(8, maskedCrc(out.subarray(0, 8)), true);
  out.set(data, 12);
  view.setUint32(12 + data.length, maskedCrc(data), true);
  return out;
}

const CRC32C = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0x82f63b78 : n >>> 1;
  return n >>> 0;
});

/** CRC-32C (Castagnoli), rotated and offset as TFRecord asks. */
function maskedCrc(bytes: Uint8Array): number {
  let c = 0xffffffff;
  for (const b of bytes) c = CRC32C[(c ^ b) & 0xff] ^ (c >>> 8);
  c = (c ^ 0xffffffff) >>> 0;
  return (((c >>> 15) | (c << 17)) + 0xa282ead8) >>> 0;
}
