import { describe, expect, it, vi } from "vitest";

// uPlot asks for it when it is loaded.
vi.hoisted(() => (window.matchMedia = () => new EventTarget() as MediaQueryList));
import { columns, csv, moved, scaled, valueAt, withSmoothed } from "./view";

const line = (name: string, x: number[], y: (number | null)[]) => ({ name, label: name, slot: 0, x, y });
const both = [line("loss", [1, 2, 3, 4], [4, 3, null, 1]), line("eval_loss", [2, 4], [2, 0])];

describe("columns of a chart", () => {
  it("share one x: a gap is null, no point there is undefined", () => {
    expect(columns(both, false)).toEqual([
      [1, 2, 3, 4],
      [4, 3, null, 1],
      [undefined, 2, undefined, 0],
    ]);
  });
  it("have gaps where there is no logarithm", () =>
    expect(columns(both, true)[2]).toEqual([undefined, 2, undefined, null]));
  it("stand for lines without points, too", () => {
    expect(columns([line("a", [], [])], false)).toEqual([[], []]);
    expect(columns([line("a", [], []), ...both], false)[1]).toEqual([undefined, undefined, undefined, undefined]);
  });
  it("put smoothed lines behind the others, which stay as they are", () => {
    const plain = columns(both, false);
    const found = withSmoothed(plain, 0.5);
    expect(found.slice(0, 3)).toEqual(plain);
    expect(found).toHaveLength(5);
    expect(found[3]?.[2]).toBeNull();
    expect(withSmoothed(plain, 0)).toBe(plain);
  });
  it("tell the value at a place, or before it", () => {
    const found = columns(both, false);
    expect([valueAt(found[2], 2), valueAt(found[1], 2), valueAt(found[2], 0), valueAt(found[1], null)]).toEqual([
      2,
      null,
      undefined,
      1,
    ]);
  });
});

describe("CSV", () => {
  it("holds every point, and tells a gap from nothing", () => {
    expect(csv("step", both)).toBe('"step","loss","eval_loss"\r\n1,4,\r\n2,3,2\r\n3,nan,\r\n4,1,0\r\n');
  });
  it("cannot be taken for formulas", () => {
    expect(csv("step", [line('=cmd|"x"', [1], [2])]).split("\r\n")[0]).toBe('"step","\'=cmd|""x"""');
  });
});

describe("zoom", () => {
  it("moves by a share, and keeps the middle when it grows", () => {
    expect(moved([0, 100], 0.25)).toEqual([25, 125]);
    expect(scaled([0, 100], 0.5)).toEqual([25, 75]);
    expect(scaled(scaled([0, 100], 0.5), 2)).toEqual([0, 100]);
  });
});
