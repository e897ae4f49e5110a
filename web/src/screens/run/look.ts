/** How curves are shown, as it stands in the address. */
import { duration, number } from "../../lib/format";

export interface Look {
  smoothing: number;
  log: boolean;
  axis: string;
  zoom: [number, number] | null;
}

/** Whatever is not understood is as if it were not there. */
export function lookOf(query: URLSearchParams, axes: readonly string[]): Look {
  const smoothing = Number(query.get("smooth") ?? 0);
  const [from, to] = (query.get("zoom") ?? "").split("~").map((each) => (each === "" ? NaN : Number(each)));
  const axis = query.get("x") ?? "";
  return {
    smoothing: smoothing > 0 && smoothing < 1 ? smoothing : 0,
    log: query.get("log") === "1",
    axis: axes.includes(axis) ? axis : axes[0]!,
    zoom: from !== undefined && to !== undefined && from < to ? [from, to] : null,
  };
}

export const zoomText = (zoom: [number, number] | null): string | null =>
  zoom && zoom.map((each) => Number(each.toPrecision(9))).join("~");

/** How a place on the axis is written. */
export const showOn = (axis: string): ((value: number) => string) =>
  axis === "time" ? duration : (value) => number(value, 6);
