import { describe, expect, it } from "vitest";
import { measuresOf } from "./evaluations";
import { against, asShare, at, lastBefore, Slots } from "./lines";
import { sideBySide } from "./samples";

const line = (x: number[], y: (number | null)[]) => ({ name: "loss", x, y });

describe("curves of several runs", () => {
  it("have values between their points, none outside and none beside a gap", () => {
    const one = line([0, 10, 20, 30], [0, 10, null, 30]);
    expect([0, 5, 10, 15, 25, 30, 31, -1].map((x) => at(one, x))).toEqual([0, 5, 10, null, null, 30, null, null]);
    expect(at(line([], []), 1)).toBeNull();
  });
  it("are told as distance and ratio at their own x", () => {
    const base = line([0, 10], [2, 4]);
    const other = line([0, 5, 10, 15], [2, 6, 2, 1]);
    expect(against(other, base, "difference").y).toEqual([0, 3, -2, null]);
    expect(against(other, base, "ratio").y).toEqual([1, 2, 0.5, null]);
    expect(against(other, base, "value")).toBe(other);
    expect(against(other, undefined, "difference").y).toEqual([null, null, null, null]);
    expect(against(line([0], [1]), line([0], [0]), "ratio").y).toEqual([null]);
  });
  it("are laid over each other by the share of the steps that were planned", () => {
    expect(asShare(line([50, 100], [1, 2]), 200).x).toEqual([0.25, 0.5]);
    expect(asShare(line([50, 100], [1, 2]), null).x).toEqual([0.5, 1]);
  });
  it("say what they were at a place", () => {
    expect([0, 1, 2.5, 9].map((x) => lastBefore(line([1, 2, 3], [5, 6, null]), x))).toEqual([null, 5, 6, null]);
  });
  it("keep their colour while others come and go", () => {
    const slots = new Slots();
    expect(["a", "b", "c"].map((id) => slots.of(id))).toEqual([0, 1, 2]);
    slots.keep(["b", "c", "d"]);
    expect(["c", "d", "b"].map((id) => slots.of(id))).toEqual([2, 3, 1]);
  });
});

describe("answers side by side", () => {
  it("are matched by prompt, the best of each run, prompts that both have first", () => {
    const group = (prompt: string, ...completions: { text: string; reward: number | null }[]) => ({
      step: 3,
      prompt,
      completions,
    });
    const found = sideBySide([
      [
        group("only a", { text: "x", reward: 1 }),
        group("both", { text: "bad", reward: 0 }, { text: "good", reward: 1 }),
      ],
      [group("both", { text: "none", reward: null })],
    ]);
    expect(found.map(({ prompt }) => prompt)).toEqual(["both", "only a"]);
    expect(found[0]?.answers.map((each) => each?.text)).toEqual(["good", "none"]);
    expect(found[1]?.answers).toEqual([{ step: 3, text: "x", reward: 1 }, undefined]);
  });
});

describe("evaluations", () => {
  it("stand with the run that they are about, and are empty for the others", () => {
    const one = {
      run: "b",
      models: [
        { model: "base", measures: { loss: { value: 2 } } },
        { model: "b", measures: { loss: { value: 1 } } },
      ],
    };
    expect(measuresOf([one], [{ id: "a" }, { id: "b" }])).toEqual([{}, { loss: 1 }]);
  });
});
