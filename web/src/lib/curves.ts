/** Curves of a run: thinned ones from the server, and what the stream of events adds to them. */
import type { Shapes } from "./api/shapes";

export type XAxis = "step" | "tokens" | "time";

export interface Line {
  name: string;
  x: number[];
  /** null: not a number there; the line has a gap. */
  y: (number | null)[];
}

/** Where a run went on, or wrote a checkpoint; `x` is on the axis of its curves. */
export interface Mark {
  kind: string;
  x: number;
}

/** A line of events.jsonl. */
export interface RunEvent {
  seq: number;
  time: string;
  kind: string;
  step?: number;
  tokens?: number;
  nonfinite?: boolean;
  [key: string]: unknown;
}

/** What became of an event. `reload`: only the server can put it into the curves. */
export type Taken = "added" | "known" | "reload";

const NO_METRICS = new Set(["seq", "step", "epoch", "mono", "tokens", "nonfinite", "after", "total"]);
const KEPT_DURATIONS = 50;
/** So many points are added to a line before the server is asked for thinned ones. */
const MOST_ADDED = 4000;

export class RunCurves {
  readonly lines = new Map<string, Line>();
  marks: Mark[] = [];
  lastSeq = 0;
  /** Seconds of the last steps. */
  durations: number[] = [];
  /** Metrics that the run has; those without a line are not shown, and not followed. */
  readonly known: Set<string>;
  #tokens = 0;
  #added = 0;
  #forgiven = 0;

  constructor(
    readonly axis: XAxis,
    reply: Shapes["Curves"],
    known: Iterable<string> = [],
  ) {
    this.lastSeq = reply.last_seq;
    const marks = (reply.marks ?? []).map((mark) => ({ kind: String(mark["kind"]), x: Number(mark[axis]) }));
    this.marks = marks.filter(({ x }) => Number.isFinite(x));
    for (const { name, x, y } of reply.curves) this.lines.set(name, { name, x, y });
    this.known = new Set([...known, ...this.lines.keys()]);
    if (axis === "tokens") this.#tokens = Math.max(0, ...[...this.lines.values()].map(({ x }) => x.at(-1) ?? 0));
  }

  /** Take in what happened next. Numbers that came already, and gaps between them, are noticed by `seq`. */
  add(event: RunEvent): Taken {
    if (event.seq <= this.lastSeq) return "known";
    const gap = event.seq > this.lastSeq + 1 && this.lastSeq > 0;
    if (gap && this.#forgiven !== event.seq) {
      this.#forgiven = event.seq;
      return "reload";
    }
    this.lastSeq = event.seq;
    if (event.kind === "begin") return "reload";
    if (event.kind === "checkpoint" && event.step !== undefined) {
      if (this.axis === "time") return "reload";
      this.marks.push({ kind: "checkpoint", x: this.axis === "step" ? event.step : this.#tokens });
    }
    if (event.kind !== "train" && event.kind !== "eval") return "added";
    if (typeof event["seconds"] === "number" && event.kind === "train") this.#lasted(event["seconds"]);
    return this.#append(event);
  }

  /** The event that was refused may be taken after all: the server has been asked, and knows no more. */
  forgive(seq: number): void {
    this.#forgiven = seq;
  }

  last(name: string): number | null | undefined {
    return this.lines.get(name)?.y.at(-1);
  }

  #lasted(seconds: number): void {
    this.durations.push(seconds);
    if (this.durations.length > KEPT_DURATIONS) this.durations.shift();
  }

  #append(event: RunEvent): Taken {
    this.#tokens = event.tokens ?? this.#tokens;
    if (this.axis === "time" || event.step === undefined) return "reload";
    const x = this.axis === "step" ? event.step : this.#tokens;
    for (const [name, value] of Object.entries(event)) {
      if (NO_METRICS.has(name) || !(typeof value === "number" || (value === null && event.nonfinite))) continue;
      const line = this.#line(name);
      if (!line) continue;
      const end = line.x.at(-1);
      if (end !== undefined && x < end) return "reload";
      line.x.push(x);
      line.y.push(value);
    }
    return ++this.#added > MOST_ADDED ? "reload" : "added";
  }

  #line(name: string): Line | undefined {
    let line = this.lines.get(name);
    if (!line && !this.known.has(name)) {
      line = { name, x: [], y: [] };
      this.lines.set(name, line);
      this.known.add(name);
    }
    return line;
  }
}

/** Seconds that are left: the median of the last steps times what is to do; null while nobody can tell. */
export function timeLeft(durations: number[], step: number, total: number | null): number | null {
  if (!durations.length || total === null || total < step) return null;
  return median(durations) * (total - step);
}

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/**
 * Exponential mean of the points so far, without the pull of the zero that it begins from (Kingma and Ba 2015,
 * section 3). `weight` from 0 (the line itself) to below 1. Gaps stay gaps and are not counted.
 */
export function smooth(y: (number | null | undefined)[], weight: number): (number | null | undefined)[] {
  if (weight <= 0) return y;
  let sum = 0;
  let mass = 0;
  return y.map((value) => {
    if (value == null || !Number.isFinite(value)) return value;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

export interface Summary {
  points: number;
  last: number | null;
  lastX: number;
  least: number | null;
  leastX: number;
  most: number | null;
  mostX: number;
}

/** What a line says, in numbers; null for a line without points. */
export function summary(line: Pick<Line, "x" | "y">): Summary | null {
  if (!line.x.length) return null;
  let least = -1;
  let most = -1;
  line.y.forEach((value, i) => {
    if (value == null) return;
    if (least < 0 || value < line.y[least]!) least = i;
    if (most < 0 || value > line.y[most]!) most = i;
  });
  const end = line.x.length - 1;
  return {
    points: line.x.length,
    last: line.y[end] ?? null,
    lastX: line.x[end]!,
    least: line.y[least] ?? null,
    leastX: line.x[least] ?? NaN,
    most: line.y[most] ?? null,
    mostX: line.x[most] ?? NaN,
  };
}
