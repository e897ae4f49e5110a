/** What a cut at some length takes away, told from how many rows are how long. */

/** [tokens up to, rows], by length. */
export type Lengths = readonly (readonly number[])[];

export interface Cut {
  /** Rows that are longer. */
  rows: number;
  /** Tokens behind the cut. */
  tokens: number;
  /** Whether a bin reaches over the cut, so that both are estimates. */
  about: boolean;
}

/** Rows of a bin are taken as spread evenly over it. */
export function cutAt(lengths: Lengths, cutoff: number): Cut {
  const cut: Cut = { rows: 0, tokens: 0, about: false };
  let below = 0;
  for (const [most = 0, rows = 0] of lengths) {
    if (most > cutoff && rows) {
      const from = Math.max(below, cutoff);
      const share = most > below ? (most - from) / (most - below) : 1;
      cut.rows += rows * share;
      cut.tokens += rows * share * ((from + 1 + most) / 2 - cutoff);
      if (most - below > 1) cut.about = true;
    }
    below = most;
  }
  return { rows: Math.round(cut.rows), tokens: Math.round(cut.tokens), about: cut.about };
}

export const rowsIn = (lengths: Lengths): number => lengths.reduce((sum, [, rows = 0]) => sum + rows, 0);

/** Longest length that at least this share of the rows keep within. */
export function lengthOf(lengths: Lengths, share: number): number {
  const enough = rowsIn(lengths) * share;
  let seen = 0;
  for (const [most = 0, rows = 0] of lengths) {
    seen += rows;
    if (seen >= enough) return most;
  }
  return lengths.at(-1)?.[0] ?? 0;
}
