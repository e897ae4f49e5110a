/** What a chart shows, and what it makes of it: columns that share one x, smoothed lines, texts. */
import uPlot from "uplot";
import { smooth, type Line, type Mark } from "../../lib/curves";

export interface Drawn extends Line {
  /** What the legend calls it. */
  label: string;
  /** Which colour and dash it has, from 0 on. */
  slot: number;
}

export interface View {
  title: string;
  lines: Drawn[];
  /** 0: as it is; to below 1. */
  smoothing: number;
  log: boolean;
  zoom: [number, number] | null;
  marks: Mark[];
  showX: (value: number) => string;
  showY: (value: number) => string;
}

type Column = (number | null | undefined)[];
/** x, then each line; undefined where a line has no point at that x. */
export type Columns = [number[], ...Column[]];

const COLOURS = 8;
const DASHES: number[][] = [[], [7, 4], [2, 3], [9, 3, 2, 3], [14, 4]];

export const colour = (slot: number): string => `--line-${slot % COLOURS}`;
export const dash = (slot: number): number[] => DASHES[slot % DASHES.length]!;

/** One x for all lines. With `log`, what has no logarithm is a gap. */
export function columns(lines: Line[], log: boolean): Columns {
  const positive = (value: number | null) => (value !== null && value > 0 ? value : null);
  const tables = lines
    .filter(({ x }) => x.length)
    .map(({ x, y }): [number[], (number | null)[]] => [x, log ? y.map(positive) : y]);
  if (!tables.length) return [[], ...lines.map((): Column => [])];
  const joined = uPlot.join(tables) as unknown as Columns;
  let next = 1;
  return [joined[0], ...lines.map(({ x }): Column => (x.length ? joined[next++]! : joined[0].map(() => undefined)))];
}

/** What is drawn: each line as it is, and behind them all, smoothed. */
export function withSmoothed(data: Columns, weight: number): Columns {
  if (weight <= 0) return data;
  const [x, ...lines] = data;
  return [x, ...lines, ...lines.map((y) => smooth(y, weight))];
}

/** The value at a place, or the one before it where the line has no point there. */
export function valueAt(column: Column | undefined, index: number | null): number | null | undefined {
  if (!column?.length) return undefined;
  for (let i = index ?? column.length - 1; i >= 0; i--) if (column[i] !== undefined) return column[i];
  return undefined;
}

const quoted = (text: string): string => `"${text.replaceAll('"', '""').replace(/^[=+\-@\t]/, "'$&")}"`;

/** The lines as CSV; an empty cell: no point, "nan": not a number. */
export function csv(xName: string, lines: Drawn[]): string {
  const [x, ...rest] = columns(lines, false);
  const head = [xName, ...lines.map(({ label }) => label)].map(quoted).join(",");
  const cell = (value: number | null | undefined) =>
    value === undefined ? "" : value === null ? "nan" : String(value);
  return [head, ...x.map((at, i) => [at, ...rest.map((y) => cell(y[i]))].join(","))].join("\r\n") + "\r\n";
}

/** A part of what is seen, moved or made wider or narrower: `by` is a share of its width. */
export function moved(zoom: [number, number], by: number): [number, number] {
  const step = (zoom[1] - zoom[0]) * by;
  return [zoom[0] + step, zoom[1] + step];
}

export function scaled(zoom: [number, number], factor: number): [number, number] {
  const middle = (zoom[0] + zoom[1]) / 2;
  const half = ((zoom[1] - zoom[0]) / 2) * factor;
  return [middle - half, middle + half];
}

/** Hand a file to the browser. */
export function download(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name.replace(/[^\p{L}\p{N}._-]+/gu, "-");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
