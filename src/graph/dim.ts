/**
 * @file Dimensions: numbers, or integer expressions over named symbols, so that one inference graph serves
 * every batch and size. An expression is a polynomial with integer coefficients; its atoms are symbols and
 * floor divisions. Expressions are interned, so equal ones are the same object.
 */

export type Dim = number | SymDim;
export type Shape = readonly Dim[];

type Atom = { symbol: string } | { floor: SymDim; by: number };

const interned = new Map<string, SymDim>();
const atoms = new Map<string, Atom>();

/** A sum of monomials; each key is the sorted, `*`-joined list of atom names ("" for the constant). */
export class SymDim {
  readonly terms: ReadonlyMap<string, number>;
  private readonly text: string;

  /** Use the functions below; they keep expressions canonical. */
  constructor(terms: ReadonlyMap<string, number>, text: string) {
    this.terms = terms;
    this.text = text;
  }

  toString(): string {
    return this.text;
  }
}

const SEPARATOR = "*";

function make(terms: Map<string, number>): Dim {
  const entries = [...terms].filter(([, k]) => k !== 0).sort(([a], [b]) => (a < b ? -1 : 1));
  if (entries.length === 0) return 0;
  if (entries.length === 1 && entries[0][0] === "") return entries[0][1];
  const text = entries.map(([m, k]) => (m === "" ? `${k}` : k === 1 ? m : `${k}${SEPARATOR}${m}`)).join("+");
  let dim = interned.get(text);
  if (!dim) {
    dim = new SymDim(new Map(entries), text);
    interned.set(text, dim);
  }
  return dim;
}

function termsOf(d: Dim): ReadonlyMap<string, number> {
  return typeof d === "number" ? new Map([["", d]]) : d.terms;
}

/** A named symbolic dimension, e.g. `symbol("B")`. @throws when the name could be taken for an expression. */
export function symbol(name: string): SymDim {
  if (!/^[A-Za-z_]\w*$/.test(name))
    throw new Error(`the name of a dimension is letters, digits and _, got ${JSON.stringify(name)}`);
  atoms.set(name, { symbol: name });
  return make(new Map([[name, 1]])) as SymDim;
}

export function addDim(a: Dim, b: Dim): Dim {
  if (typeof a === "number" && typeof b === "number") return a + b;
  const out = new Map(termsOf(a));
  for (const [m, k] of termsOf(b)) out.set(m, (out.get(m) ?? 0) + k);
  return make(out);
}

export function mulDim(a: Dim, b: Dim): Dim {
  if (typeof a === "number" && typeof b === "number") return a * b;
  const out = new Map<string, number>();
  for (const [ma, ka] of termsOf(a))
    for (const [mb, kb] of termsOf(b)) {
      const m = [...split(ma), ...split(mb)].sort().join(SEPARATOR);
      out.set(m, (out.get(m) ?? 0) + ka * kb);
    }
  return make(out);
}

export function floorDivDim(a: Dim, by: number): Dim {
  if (typeof a === "number") return Math.floor(a / by);
  if (by === 1) return a;
  const exact = divideDim(a, by);
  if (exact !== undefined) return exact;
  // floor((by·q + r) / by) = q + floor(r / by): the part that divides leaves the floor.
  const quotient = new Map<string, number>();
  const rest = new Map<string, number>();
  for (const [m, k] of a.terms) {
    const r = ((k % by) + by) % by;
    quotient.set(m, (k - r) / by);
    rest.set(m, r);
  }
  const inner = make(rest);
  if (typeof inner === "number") return addDim(make(quotient), Math.floor(inner / by));
  const name = `floor((${inner})/${by})`;
  atoms.set(name, { floor: inner, by });
  return addDim(make(quotient), make(new Map([[name, 1]])));
}

/** a / b when it is exact for every value of the symbols, else undefined. `b` must be a single monomial. */
export function divideDim(a: Dim, b: Dim): Dim | undefined {
  if (typeof a === "number" && typeof b === "number") return a % b === 0 ? a / b : undefined;
  if (a === b) return 1;
  const divisor = [...termsOf(b)];
  if (divisor.length !== 1) return undefined;
  const [mb, kb] = divisor[0];
  const out = new Map<string, number>();
  for (const [ma, ka] of termsOf(a)) {
    const left = split(ma);
    for (const atom of split(mb)) {
      const i = left.indexOf(atom);
      if (i < 0) return undefined;
      left.splice(i, 1);
    }
    if (ka % kb !== 0) return undefined;
    out.set(left.join(SEPARATOR), ka / kb);
  }
  return make(out);
}

/** Value of a dimension, given its symbols. Throws when a symbol is not given. */
export function evalDim(d: Dim, env: Readonly<Record<string, number>>): number {
  if (typeof d === "number") return d;
  let sum = 0;
  for (const [m, k] of d.terms)
    sum += split(m).reduce((product, name) => {
      const atom = atoms.get(name)!;
      if ("floor" in atom) return product * Math.floor(evalDim(atom.floor, env) / atom.by);
      if (!Object.hasOwn(env, name)) throw new Error(`dimension ${d}: no value for symbol ${name}`);
      return product * env[name];
    }, k);
  return sum;
}

/** Structure of an expression, for code that lowers it: Σ coefficient · Π atoms. */
export function dimTerms(d: SymDim): { coefficient: number; factors: Atom[] }[] {
  return [...d.terms].map(([m, coefficient]) => ({
    coefficient,
    factors: split(m).map((n) => atoms.get(n)!),
  }));
}

/** Number of elements. */
export function sizeDim(shape: Shape): Dim {
  return shape.reduce<Dim>(mulDim, 1);
}

export function isStatic(shape: Shape): shape is readonly number[] {
  return shape.every((d) => typeof d === "number");
}

/** The shape as plain numbers. Throws when a dimension is symbolic. */
export function staticShape(shape: Shape): number[] {
  if (!isStatic(shape)) throw new Error(`expected a static shape, got [${shape.join(",")}]`);
  return [...shape];
}

function split(monomial: string): string[] {
  if (monomial === "") return [];
  // Atoms such as floor((H*W)/2) contain the separator inside parentheses.
  const out: string[] = [];
  let depth = 0;
  let start = 0;
  for (let i = 0; i < monomial.length; i++) {
    if (monomial[i] === "(") depth++;
    else if (monomial[i] === ")") depth--;
    else if (monomial[i] === SEPARATOR && depth === 0) {
      out.push(monomial.slice(start, i));
      start = i + 1;
    }
  }
  out.push(monomial.slice(start));
  return out;
}
