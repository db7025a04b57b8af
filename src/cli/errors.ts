/** @file What a failed command says, and the exit code it says it with. */

import process from "node:process";
import { CommanderError } from "commander";

/** The user can mend this: one sentence on stderr, exit code 2. */
export class UsageError extends Error {
  override name = "UsageError";
}

/** The command was asked to end, and did so in order. */
export class Interruption extends Error {
  override name = "Interruption";
  readonly exitCode: number;

  constructor(exitCode: number, message = "interrupted") {
    super(message);
    this.exitCode = exitCode;
  }
}

export interface Failure {
  /** Empty when there is nothing to say: help was asked for. */
  message: string;
  code: number;
}

/** Sentences for the system's error codes; each reads on with the path. */
const SYSTEM: Readonly<Record<string, string>> = {
  ENOENT: "no such file or folder",
  EACCES: "no permission",
  EPERM: "not permitted",
  EROFS: "the file system is read-only",
  ENOSPC: "the disk is full",
  EDQUOT: "the disk quota is used up",
  EISDIR: "this is a folder, a file is needed",
  ENOTDIR: "part of the path is a file, not a folder",
  EEXIST: "a file of that name is there",
  EMFILE: "too many open files",
  ENAMETOOLONG: "the name is too long",
};

/** Thrown by mistakes in the program itself, never on purpose. */
const BUGS = [TypeError, ReferenceError, SyntaxError, RangeError];

/** Turns anything thrown into a sentence and an exit code (2: the user's input, 1: our mistake). */
export function failureOf(error: unknown): Failure {
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return { message: "", code: 0 };
    const message = error.message.replace(/^error: /, "").replace(/\s*\n\s*/g, " ");
    return { message: error.code === "commander.help" ? "" : message, code: 2 };
  }
  if (!(error instanceof Error)) return { message: `internal error: ${String(error)}`, code: 1 };
  if (error instanceof Interruption) return { message: error.message, code: error.exitCode };
  const { code, path, dest } = error as NodeJS.ErrnoException & { dest?: string };
  if (code && code in SYSTEM)
    return { message: [dest ?? path, SYSTEM[code]].filter(Boolean).join(": "), code: 2 };
  if (BUGS.some((bug) => error instanceof bug)) {
    const message = `internal error: ${error.message} (please report it; FEWSTEP_DEBUG=1 shows where)`;
    return { message, code: 1 };
  }
  return { message: error.message, code: 2 };
}

/** Prints the sentence on stderr, with the stack when `FEWSTEP_DEBUG` is set, and gives the exit code. */
export function report(error: unknown): number {
  const { message, code } = failureOf(error);
  if (message) console.error(`fewstep: ${message}`);
  if (message && process.env.FEWSTEP_DEBUG && error instanceof Error) console.error(error.stack);
  return code;
}
