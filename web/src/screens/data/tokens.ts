/** Tokens of a row in the order of the text, those that stand together and are treated alike as one stretch. */
import type { Shapes } from "../../lib/api/shapes";

type Piece = Shapes["TokenPiece"];

export interface Stretch {
  kind: Piece["kind"];
  pieces: Piece[];
}

export function stretches(pieces: readonly Piece[]): Stretch[] {
  const found: Stretch[] = [];
  for (const piece of pieces) {
    const last = found.at(-1);
    if (last && last.kind === piece.kind) last.pieces.push(piece);
    else found.push({ kind: piece.kind, pieces: [piece] });
  }
  return found;
}

/** Text of a token with what cannot be seen made visible; a line end stays one, behind its sign. */
export function visible(text: string): string {
  if (!text) return "∅";
  return text
    .replace(/\r/g, "␍")
    .replace(/\n/g, "⏎\n")
    .replace(/\t/g, "⇥\t")
    .replace(/[\u00a0\u2000-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (letter) => `‹${code(letter)}›`)
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]/g, (letter) => `‹${code(letter)}›`);
}

const code = (letter: string): string => `U+${letter.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

/** The next place in `places` (sorted) behind or before `from`; null where there is none. */
export function neighbour(places: readonly number[], from: number, forward: boolean): number | null {
  const found = forward ? places.find((each) => each > from) : places.findLast((each) => each < from);
  return found ?? null;
}
