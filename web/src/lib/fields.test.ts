import { describe, expect, it } from "vitest";
import type { FormField } from "./api/shapes";
import { belongs, fieldsFor, found, read, show, textWithoutSecrets, toYaml, withoutSecrets, withValue } from "./fields";

const field = (changes: Partial<FormField>): FormField => ({
  key: "train.learning_rate",
  label: "Learning rate",
  help: "Peak, reached after warm-up.",
  kind: "number",
  group: "train",
  ...changes,
});

describe("texts of fields", () => {
  it.each([
    ["number", "2e-4", 2e-4],
    ["number", "three", "three"],
    ["number", "0x", "0x"],
    ["integer", " 12 ", 12],
    ["integer", "", undefined],
    ["flag", "true", true],
    ["flag", "false", false],
    ["choice", "cosine", "cosine"],
    ["choice", "true", true],
    ["names", "a, b\n c,,", ["a", "b", "c"]],
    ["numbers", "1, 2.5, x", [1, 2.5, "x"]],
    ["mapping", "min_lr_rate: 0.1\nname: a: b", { min_lr_rate: 0.1, name: "a: b" }],
    ["mapping", '[{"name": "exact"}]', [{ name: "exact" }]],
    ["mapping", "no pair", "no pair"],
    ["text", "  ", undefined],
  ] as const)("%s %j means %j", (kind, text, value) => {
    expect(read(kind, text)).toEqual(value);
  });

  it.each([
    ["number", 2e-4],
    ["flag", true],
    ["names", ["a", "b"]],
    ["numbers", [1, 2.5]],
    ["mapping", { a: 1, b: "two" }],
    ["mapping", { a: { b: [1] } }],
    ["mapping", [{ name: "exact", weight: 2 }]],
  ] as const)("%s shows %j so that it is read as the same", (kind, value) => {
    expect(read(kind, show(value))).toEqual(value);
  });

  it("sets and takes away a value without touching the old object", () => {
    const before = { train: { seed: 1 } };
    expect(withValue(before, "data.cutoff_len", 512)).toEqual({ train: { seed: 1 }, data: { cutoff_len: 512 } });
    expect(withValue(before, "train.seed", undefined)).toEqual({});
    expect(before).toEqual({ train: { seed: 1 } });
  });

  it("knows what belongs to a method", () => {
    expect(belongs(field({ key: "tuning.rank", only: ["lora"] }), "lora", "sft")).toBe(true);
    expect(belongs(field({ key: "tuning.rank", only: ["lora"] }), "full", "lora")).toBe(false);
    expect(belongs(field({ key: "objective.beta", only: ["dpo"] }), "full", "dpo")).toBe(true);
    expect(belongs(field({}), "full", "sft")).toBe(true);
  });

  it("shows settings of answers only where answers earn rewards", () => {
    const objectives = [
      { name: "sft", help: "", goal: "teach" },
      { name: "grpo", help: "", goal: "reward" },
    ];
    const shelf = { fields: [field({}), field({ key: "rollout.rewards" })], groups: {}, objectives, tunings: [] };
    const keys = (objective: string) =>
      fieldsFor({ ...shelf, templates: [], formats: [] }, "lora", objective).map((each) => each.key);
    expect(keys("sft")).toEqual(["train.learning_rate"]);
    expect(keys("grpo")).toEqual(["train.learning_rate", "rollout.rewards"]);
  });

  it("finds by all words, in name, label and help", () => {
    expect(found(field({}), "rate WARM-UP")).toBe(true);
    expect(found(field({}), "rate cosine")).toBe(false);
  });

  it("writes YAML whose texts cannot be mistaken", () => {
    expect(toYaml({ model: { model_name_or_path: "no", dtype: "auto" }, data: { dataset: ["a: b"] } })).toBe(
      'model:\n  model_name_or_path: "no"\n  dtype: "auto"\ndata:\n  dataset: ["a: b"]\n',
    );
  });

  it("keeps no secrets", () => {
    expect(withoutSecrets({ train: { hub_token: "t", seed: 1 }, rollout: { max_new_tokens: 5 } })).toEqual({
      train: { seed: 1 },
      rollout: { max_new_tokens: 5 },
    });
    expect(textWithoutSecrets("hub_token: hf_abc\nmax_new_tokens: 5\n  api_key: x")).toBe(
      "hub_token:\nmax_new_tokens: 5\n  api_key:",
    );
  });
});
