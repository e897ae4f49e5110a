import { describe, expect, it } from "vitest";
import type { DataSet } from "../../lib/api/shapes";
import { choose, isChosen, isElsewhere, namesOf } from "./datasets";

const set = (name: string, folder: string): DataSet => ({
  ...{ name, folder, source: name, format: "auto", rows: 3, bytes: 1, modified: 0 },
});
const given = (values: Record<string, unknown>) => (key: string) => values[key];

describe("data sets in settings", () => {
  it("takes the folder along with the first set", () => {
    expect(choose(set("a", "more"), "data.dataset", true, given({}))).toEqual({
      "data.dataset": ["a"],
      "data.dataset_dir": "more",
    });
    expect(choose(set("a", "data"), "data.dataset", true, given({}))["data.dataset_dir"]).toBeUndefined();
  });

  it("adds further sets of the same folder and takes them away", () => {
    const now = given({ "data.dataset": ["a"], "data.dataset_dir": "more" });
    expect(choose(set("b", "more"), "data.dataset", true, now)).toEqual({ "data.dataset": ["a", "b"] });
    expect(choose(set("a", "more"), "data.dataset", false, now)).toEqual({ "data.dataset": undefined });
    expect(choose(set("b", "more"), "data.eval_dataset", true, now)).toEqual({ "data.eval_dataset": ["b"] });
  });

  it("knows a set by its path, too", () => {
    const now = given({ "data.dataset": "examples/t/train.jsonl" });
    expect(isChosen(set("train.jsonl", "examples/t"), "data.dataset", now)).toBe(true);
    expect(isChosen(set("train.jsonl", "data"), "data.dataset", now)).toBe(false);
    expect(choose(set("train.jsonl", "examples/t"), "data.dataset", false, now)).toEqual({ "data.dataset": undefined });
  });

  it("knows a folder by the way to it from where the server was started", () => {
    const now = given({ "data.dataset": ["a"], "data.dataset_dir": "examples/data" });
    expect(isChosen(set("a", "/home/me/examples/data"), "data.dataset", now)).toBe(true);
    expect(isChosen(set("a", "/home/me/more_examples/data"), "data.dataset", now)).toBe(false);
    expect(isElsewhere(set("b", "/home/me/examples/data"), now)).toBe(false);
  });

  it("refuses a second folder", () => {
    const now = given({ "data.dataset": ["a"], "data.dataset_dir": "more" });
    expect(isElsewhere(set("b", "data"), now)).toBe(true);
    expect(isElsewhere(set("b", "more"), now)).toBe(false);
    expect(isElsewhere(set("b", "data"), given({}))).toBe(false);
  });

  it("reads names however they are given", () => {
    expect(namesOf("a, b,")).toEqual(["a", "b"]);
    expect(namesOf(["a", 1])).toEqual(["a", "1"]);
    expect(namesOf(undefined)).toEqual([]);
  });
});
