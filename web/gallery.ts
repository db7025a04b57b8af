/** @file Pictures that the browser keeps, newest first: files and settings in IndexedDB. */

import { type DBSchema, type IDBPDatabase, openDB } from "idb";
import type { Settings } from "./settings.ts";
import { Store } from "./store.ts";

export interface Kept {
  id: number;
  /** Milliseconds since 1970. */
  at: number;
  /** Of this picture alone. */
  settings: Settings;
  /** PNG. */
  file: Blob;
  /** Of the file, for as long as the page is open. */
  url: string;
}

type Row = Omit<Kept, "id" | "url"> & { id?: number };

interface Schema extends DBSchema {
  pictures: { key: number; value: Row };
}

/** Pictures; the oldest make room. */
const MOST = 500;

class Gallery {
  readonly pictures = new Store<readonly Kept[]>([]);
  /** Why pictures are not kept, where the browser forbids it or has no room. */
  readonly trouble = new Store<string | undefined>(undefined);
  private readonly db: Promise<IDBPDatabase<Schema> | undefined> = this.open();

  async add(added: readonly Omit<Row, "id">[]): Promise<void> {
    const kept: Kept[] = [];
    for (const [i, row] of added.entries()) {
      const id = (await this.store(row)) ?? -Date.now() - i;
      kept.unshift({ ...row, id, url: URL.createObjectURL(row.file) });
    }
    const all = [...kept, ...this.pictures.get()];
    this.pictures.set(all.slice(0, MOST));
    for (const { id, url } of all.slice(MOST)) {
      URL.revokeObjectURL(url);
      await (await this.db)?.delete("pictures", id).catch(() => {}); // a closed database has stored nothing either
    }
  }

  /** Gives the number of a picture; undefined when it is not stored. */
  private async store(row: Row): Promise<number | undefined> {
    try {
      return await (await this.db)?.add("pictures", row);
    } catch {
      this.trouble.set("This browser did not keep all of these pictures: download those that are to stay.");
      return undefined;
    }
  }

  async remove(id: number): Promise<void> {
    this.pictures.set(this.pictures.get().filter((picture) => picture.id !== id));
    await (await this.db)?.delete("pictures", id);
  }

  async clear(): Promise<void> {
    this.pictures.set([]);
    const db = await this.db;
    await db?.clear("pictures");
    if (db) this.trouble.set(undefined);
  }

  private async open(): Promise<IDBPDatabase<Schema> | undefined> {
    try {
      const db = await openDB<Schema>("fewstep", 1, {
        upgrade: (fresh) => void fresh.createObjectStore("pictures", { keyPath: "id", autoIncrement: true }),
      });
      const rows = await db.getAll("pictures");
      const known = rows.map((row) => ({ ...row, id: row.id!, url: URL.createObjectURL(row.file) }));
      this.pictures.set([...this.pictures.get(), ...known.reverse()]);
      return db;
    } catch {
      this.trouble.set("This browser keeps no data for this page: pictures are gone when it is closed.");
      return undefined;
    }
  }
}

export const gallery: Gallery = new Gallery();
