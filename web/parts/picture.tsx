/** @file A picture at a size that suits its pixels, and the place where one will be. */

import type { CSSProperties, ReactNode } from "react";

interface Size {
  /** Pixels. */
  width: number;
  height: number;
}

/** Screen pixels from which a picture is shown smoothly. */
const LARGE = 256;

/** Whole multiples of small pictures, at most `most` screen pixels wide. */
function styleOf({ width, height }: Size, most: number): CSSProperties {
  const ratio = { aspectRatio: `${width} / ${height}`, maxWidth: "100%" };
  if (width >= LARGE) return { ...ratio, width: `min(100%, ${most}px)` };
  return { ...ratio, width: `max(${width}px, round(down, min(100%, ${most}px), ${width}px))` };
}

export function Picture({ src, alt, size, most }: { src: string; alt: string; size: Size; most: number }) {
  const large = size.width >= LARGE ? " large" : "";
  return (
    <img className={`picture${large}`} src={src} alt={alt} style={styleOf(size, most)} draggable={false} />
  );
}

/** Where a picture will be. */
export function Hollow({ size, most, children }: { size: Size; most: number; children?: ReactNode }) {
  return (
    <div className="hollow" style={{ ...styleOf(size, most), boxSizing: "border-box" }}>
      {children}
    </div>
  );
}
