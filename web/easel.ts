/** @file The pictures that are being drawn: what was asked last wins, and what stays for a while is kept. */

import { workMs } from "./format.ts";
import { gallery } from "./gallery.ts";
import { Latest } from "./latest.ts";
import { type Job, server } from "./server.ts";
import { jobRequest, keyOf, type Offers, type Settings } from "./settings.ts";
import { Store } from "./store.ts";

export interface Easel {
  /** Addresses of what is shown: pictures, or the preview of the first. */
  pictures: readonly string[];
  isPreview: boolean;
  /** Of the pictures. */
  settings?: Settings;
  files: readonly Blob[];
  job?: Job;
  busy: boolean;
  /** Whether pictures take so long that typing alone does not begin one. */
  slow: boolean;
  /** Jobs before this one. */
  position?: number;
  progress?: { step: number; of: number };
  /** One sentence. */
  error?: string;
  /** Said to those who do not see it. */
  said: string;
}

interface Wish {
  settings: Settings;
  offers: Offers;
  keep: boolean;
}

/** Milliseconds that a picture must stay to be kept. */
const STAYS = 1500;
/** Milliseconds of the last picture, above which only Enter begins the next. */
const TOO_SLOW = 10_000;
/** Of slow pictures. */
const PREVIEWS = 5;

const EMPTY: Easel = { pictures: [], isPreview: false, files: [], busy: false, slow: false, said: "" };

class Studio {
  readonly easel = new Store<Easel>(EMPTY);
  private readonly latest = new Latest<Wish>((wish, signal) => this.work(wish, signal));
  private staying?: ReturnType<typeof setTimeout>;
  private kept?: string;

  /** Draws what is wanted now. @param keep a picture that was asked for, not only typed on the way */
  draw(settings: Settings, offers: Offers, { keep = false } = {}): void {
    clearTimeout(this.staying);
    this.latest.ask({ settings, offers, keep }, { now: keep });
  }

  cancel(): void {
    this.latest.cancel();
    if (!this.easel.get().busy) return;
    this.change({ busy: false, progress: undefined, position: undefined, said: "Stopped" });
  }

  /** Shows a picture of the gallery. */
  show(settings: Settings, file: Blob): void {
    this.latest.cancel();
    clearTimeout(this.staying);
    const { slow } = this.easel.get();
    this.replace({ ...EMPTY, settings, files: [file], pictures: [URL.createObjectURL(file)], slow });
  }

  private async work({ settings, offers, keep }: Wish, signal: AbortSignal): Promise<void> {
    this.change({ busy: true, error: undefined, progress: undefined, position: undefined });
    try {
      const request = jobRequest(settings, offers, this.latest.slow || settings.steps > 8 ? PREVIEWS : 0);
      const { job, pictures: files } = await server.draw(request, {
        signal,
        onNews: (news) => {
          if (news.type === "queued") this.change({ position: news.position });
          else if (news.type === "started") this.change({ position: undefined });
          else {
            const { step, of, preview } = news;
            this.change({ progress: { step, of } });
            if (preview) this.replace({ ...this.easel.get(), pictures: [preview], isPreview: true });
          }
        },
      });
      signal.throwIfAborted();
      const pictures = files.map((file) => URL.createObjectURL(file));
      this.replace({ ...EMPTY, settings, files, job, pictures, slow: workMs(job) > TOO_SLOW });
      const stays = (): void => void this.keep(job, settings, offers, files);
      if (keep) stays();
      else this.staying = setTimeout(stays, STAYS);
    } catch (error) {
      if (signal.aborted) return;
      this.change({ busy: false, progress: undefined, error: (error as Error).message });
    }
  }

  private async keep(job: Job, settings: Settings, offers: Offers, files: readonly Blob[]): Promise<void> {
    const ms = Math.round(workMs(job));
    this.change({ said: `${files.length === 1 ? "Picture" : `${files.length} pictures`} ready, ${ms} ms` });
    const key = keyOf(settings, offers);
    if (key === this.kept) return;
    this.kept = key;
    const rows = job.pictures.map(({ seed }, i) => ({
      at: Date.now(),
      settings: { ...settings, seed: String(seed), n: 1 },
      file: files[i],
    }));
    await gallery.add(rows);
  }

  private change(part: Partial<Easel>): void {
    this.easel.set({ ...this.easel.get(), ...part });
  }

  private replace(next: Easel): void {
    const before = this.easel.get().pictures;
    this.easel.set(next);
    for (const url of before) if (!next.pictures.includes(url)) URL.revokeObjectURL(url);
  }
}

export const studio: Studio = new Studio();
