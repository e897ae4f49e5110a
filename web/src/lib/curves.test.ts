import { describe, expect, it } from "vitest";
import { median, RunCurves, smooth, summary, timeLeft, type RunEvent } from "./curves";

const reply = (more = {}) => ({
  run: "a",
  last_seq: 10,
  curves: [{ name: "loss", x: [1, 2, 3], y: [3, 2, 1], points: 3 }],
  marks: [],
  ...more,
});
const event = (seq: number, more: Partial<RunEvent> = {}): RunEvent => ({
  seq,
  time: "",
  kind: "train",
  step: seq - 7,
  tokens: seq * 100,
  loss: 0.5,
  ...more,
});

describe("curves of a run", () => {
  it("takes each event once, whatever comes again", () => {
    const curves = new RunCurves("step", reply());
    expect([9, 10, 11, 11, 12, 12].map((seq) => curves.add(event(seq)))).toEqual([
      "known",
      "known",
      "added",
      "known",
      "added",
      "known",
    ]);
    expect(curves.lines.get("loss")).toEqual({ name: "loss", x: [1, 2, 3, 4, 5], y: [3, 2, 1, 0.5, 0.5] });
    expect(curves.lastSeq).toBe(12);
  });

  it("asks the server where numbers are missing, once", () => {
    const curves = new RunCurves("step", reply());
    expect(curves.add(event(13))).toBe("reload");
    const again = new RunCurves("step", reply());
    again.forgive(13);
    expect(again.add(event(13))).toBe("added");
  });

  it("asks the server when the run goes on from an earlier step", () => {
    expect(new RunCurves("step", reply()).add(event(11, { kind: "begin", after: 1 }))).toBe("reload");
    expect(new RunCurves("step", reply()).add(event(11, { step: 2 }))).toBe("reload");
  });

  it("keeps what is no number as a gap, and does not take the last number for it", () => {
    const curves = new RunCurves("step", reply());
    curves.add(event(11, { loss: null, nonfinite: true }));
    expect(curves.last("loss")).toBeNull();
  });

  it("begins a line for a metric that comes for the first time, and not for one that is not shown", () => {
    const curves = new RunCurves("step", reply(), ["loss", "grad_norm"]);
    curves.add(event(11, { eval_loss: 2, grad_norm: 1 }));
    expect([...curves.lines.keys()]).toEqual(["loss", "eval_loss"]);
  });

  it("puts events without tokens where the last one was", () => {
    const curves = new RunCurves("tokens", reply());
    curves.add(event(11));
    const evaluation: RunEvent = { seq: 12, time: "", kind: "eval", step: 4, eval_loss: 2 };
    curves.add(evaluation);
    expect(curves.lines.get("eval_loss")?.x).toEqual([1100]);
  });

  it("leaves time to the server", () => {
    expect(new RunCurves("time", reply()).add(event(11))).toBe("reload");
  });

  it.each([
    ["step", 2, 3],
    ["tokens", 200, 3],
  ] as const)("marks checkpoints by %s", (axis, resumed, written) => {
    const marks = [
      { kind: "resumed", step: 2, tokens: 200, time: 4 },
      { kind: "checkpoint", step: 0 },
    ];
    const curves = new RunCurves(axis, reply({ marks }));
    curves.add({ seq: 11, time: "", kind: "checkpoint", step: 3 });
    const begin = axis === "step" ? [{ kind: "checkpoint", x: 0 }] : [];
    expect(curves.marks).toEqual([{ kind: "resumed", x: resumed }, ...begin, { kind: "checkpoint", x: written }]);
    expect(new RunCurves("time", reply({ marks })).marks).toEqual([{ kind: "resumed", x: 4 }]);
  });
});

describe("time that is left", () => {
  it("is the median of the last 50 steps, so that one long step does not count", () => {
    const curves = new RunCurves("step", reply());
    for (let i = 0; i < 80; i++) curves.add(event(11 + i, { seconds: i === 79 ? 1000 : i < 30 ? 9 : 2 }));
    expect(curves.durations).toHaveLength(50);
    expect(timeLeft(curves.durations, 100, 150)).toBe(100);
  });

  it("is not known without steps or an end, and never negative", () => {
    expect(timeLeft([], 1, 10)).toBeNull();
    expect(timeLeft([1], 1, null)).toBeNull();
    expect(timeLeft([1], 11, 10)).toBeNull();
    expect(timeLeft([1], 10, 10)).toBe(0);
  });

  it("takes the middle of an even count", () => expect(median([4, 1, 3, 2])).toBe(2.5));
});

describe("smoothing", () => {
  it("is not pulled towards zero at the beginning", () => {
    expect(smooth([5, 5, 5], 0.9)).toEqual([expect.closeTo(5), expect.closeTo(5), expect.closeTo(5)]);
  });
  it("follows the recursion with the sum of the weights below it", () => {
    expect(smooth([1, 3], 0.5)[1]).toBeCloseTo((0.25 * 1 + 0.5 * 3) / 0.75);
  });
  it("leaves gaps as gaps and goes on behind them", () => {
    const found = smooth([2, null, undefined, 4], 0.5);
    expect(found.slice(0, 3)).toEqual([2, null, undefined]);
    expect(found[3]).toBeCloseTo((0.25 * 2 + 0.5 * 4) / 0.75);
  });
  it("is the line itself at zero", () => {
    const line = [1, 2];
    expect(smooth(line, 0)).toBe(line);
  });
});

describe("what a line says", () => {
  it("names the ends, and a last value that is no number", () => {
    expect(summary({ x: [1, 2, 3, 4], y: [3, 1, 5, null] })).toEqual({
      points: 4,
      last: null,
      lastX: 4,
      least: 1,
      leastX: 2,
      most: 5,
      mostX: 3,
    });
    expect(summary({ x: [], y: [] })).toBeNull();
  });
});
