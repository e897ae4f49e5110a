/** Curves of several runs beside each other: the same x, and the distance from one of them. */
import type { Line } from "../../lib/curves";

export type Show = "value" | "difference" | "ratio";
type Y = number | null;

/** x as a share of the whole: of the steps that were planned, or of those that there are. */
export function asShare(line: Line, total: number | null): Line {
  const whole = Math.max(total ?? 0, line.x.at(-1) ?? 0) || 1;
  return { ...line, x: line.x.map((x) => x / whole) };
}

/** The value at x, on the straight line between the points beside it; null outside, and beside a gap. */
export function at(line: Pick<Line, "x" | "y">, x: number): Y {
  let low = 0;
  let high = line.x.length - 1;
  if (high < 0 || x < line.x[0]! || x > line.x[high]!) return null;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (line.x[middle]! <= x) low = middle;
    else high = middle;
  }
  const [before, after] = [line.y[low] ?? null, line.y[high] ?? null];
  if (line.x[low] === x) return before;
  if (line.x[high] === x) return after;
  if (before === null || after === null) return null;
  return before + ((after - before) * (x - line.x[low]!)) / (line.x[high]! - line.x[low]!);
}

/** The last value at or before x, as it stands in the file; null where there is none. */
export function lastBefore(line: Pick<Line, "x" | "y">, x: number): Y {
  const index = line.x.findLastIndex((each) => each <= x);
  return index < 0 ? null : (line.y[index] ?? null);
}

const ACROSS: Record<Show, (value: number, base: number) => Y> = {
  value: (value) => value,
  difference: (value, base) => value - base,
  ratio: (value, base) => (base === 0 ? null : value / base),
};

/** A line as its distance from another one, at its own x. */
export function against(line: Line, base: Line | undefined, show: Show): Line {
  if (show === "value") return line;
  const y = line.x.map((x, i): Y => {
    const value = line.y[i] ?? null;
    const other = base ? at(base, x) : null;
    return value === null || other === null ? null : ACROSS[show](value, other);
  });
  return { ...line, y };
}

/** Which colour and dash a run has; it keeps them while others come and go. */
export class Slots {
  readonly #known = new Map<string, number>();

  of(id: string): number {
    let slot = this.#known.get(id);
    if (slot === undefined) {
      const taken = new Set(this.#known.values());
      slot = 0;
      while (taken.has(slot)) slot++;
      this.#known.set(id, slot);
    }
    return slot;
  }

  /** Forget the runs that are not shown any more, once their colours are needed. */
  keep(ids: string[]): void {
    if (this.#known.size < 20) return;
    for (const id of this.#known.keys()) if (!ids.includes(id)) this.#known.delete(id);
  }
}
