import { describe, expect, it } from "vitest";
import { changed, placeOf, shortModel, table, verdict, type Model } from "./measures";
import { FRESH, heldOut, missing, valuesOf } from "./plan";

const facts = (value: number, better: "higher" | "lower" = "higher", detail = false) => ({
  value,
  interval: [value - 0.1, value + 0.1] as [number, number],
  rows: 64,
  better,
  ...(detail && { detail }),
});
const MODELS: Model[] = [
  {
    model: "base",
    measures: { "loss/loss": facts(2.2, "lower"), "generate/exact_match": facts(0.1) },
    against: null,
    differences: {},
    notes: [],
  },
  {
    model: "runs/a",
    measures: {
      "loss/loss": facts(0.1, "lower"),
      "generate/exact_match": facts(0.12),
      "choice/a/b": facts(0.5, "higher", true),
    },
    against: "base",
    differences: {
      "loss/loss": { value: -2.1, interval: [-2.3, -2], rows: 64 },
      "generate/exact_match": { value: 0.02, interval: [-0.05, 0.09], rows: 64 },
    },
    notes: [],
  },
];

describe("results", () => {
  it("stand in one table, with what the difference proves", () => {
    const rows = table(MODELS, false);
    expect(rows.map((row) => row.name)).toEqual(["loss/loss", "generate/exact_match"]);
    expect(rows[0]?.lines.map((line) => line.verdict)).toEqual(["none", "better"]);
    expect(rows[1]?.lines[1]?.verdict).toBe("open");
    expect(table(MODELS, true)[2]).toMatchObject({ kind: "choice", metric: "a/b", lines: [{ model: "runs/a" }] });
  });
  it("are worse only where the interval says so", () => {
    expect(verdict("higher", { value: -1, interval: [-2, -0.1], rows: 3 })).toBe("worse");
    expect(verdict("lower", { value: 1, interval: [0.5, 2], rows: 3 })).toBe("worse");
    expect(verdict("higher", { value: -1, interval: null, rows: 1 })).toBe("open");
    expect(verdict("neither", { value: -1, interval: [-2, -0.1], rows: 3 })).toBe("open");
  });
  it("name the items that changed most", () => {
    const item = (before: number | null, after: number | null) => ({
      prompt: "",
      expected: "",
      before: "",
      after: "",
      before_score: before,
      after_score: after,
    });
    const found = changed([item(0, 0.5), item(1, 0), item(0, 1), item(null, 1), item(1, 1)], 1);
    expect(found.better.map((each) => each.after_score)).toEqual([1]);
    expect(found.worse.map((each) => each.after_score)).toEqual([0]);
  });
  it("call models by their own names", () => {
    expect(shortModel("base /a/models/tiny + /r/one")).toBe("base tiny + one");
    expect(shortModel("/r/one/checkpoint-20: 5 %")).toBe("one/checkpoint-20: 5 %");
    expect(shortModel("org/name")).toBe("org/name");
  });
  it("lie in the run", () => {
    expect(placeOf("/data/runs/tickets/evaluation/20260101-1")).toEqual({ run: "tickets", name: "20260101-1" });
    expect(placeOf("/elsewhere/results")).toBeNull();
  });
});

describe("settings", () => {
  it("say only what was chosen", () => {
    expect(valuesOf(FRESH)).toEqual({});
    expect(
      valuesOf({
        ...FRESH,
        kinds: ["loss", "judge"],
        task: "mmlu",
        dataset: "held",
        folder: "/d",
        judgeUrl: "http://x",
        judgeModel: "m",
      }),
    ).toEqual({
      evaluate: { eval_kinds: ["loss", "judge"], eval_judge: { base_url: "http://x", model: "m" } },
      data: { eval_dataset: ["held"], dataset_dir: "/d", val_size: 0 },
    });
    expect(valuesOf({ ...FRESH, samples: 5, tokens: 9 })).toEqual({
      evaluate: { predict_samples: 5 },
      generate: { max_new_tokens: 9 },
    });
  });
  it("say what is missing", () => {
    expect(missing(FRESH, "")).toEqual(["dataset"]);
    expect(missing(FRESH, "val_size 0.1")).toEqual([]);
    expect(missing({ ...FRESH, kinds: ["choice"] }, "")).toEqual(["task"]);
  });
  it("know the rows of a run", () => {
    expect(heldOut({ config: { data: { eval_dataset: ["a", "b"], val_size: 0 } } } as never)).toBe("a, b");
    expect(heldOut({ config: { data: { val_size: 0.1 } } } as never)).toBe("val_size 0.1");
    expect(heldOut({ config: {} } as never)).toBe("");
  });
});
