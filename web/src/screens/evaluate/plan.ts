/** What is measured, as the settings of a job. */
import type { RunDetail, Values } from "../../lib/api/shapes";

export const KINDS = ["loss", "generate", "choice", "forgetting", "judge", "harness"] as const;
export type Kind = (typeof KINDS)[number];
export const METRICS = ["exact", "json", "bleu", "rouge", "chrf"] as const;

/** What is kept of the form; empty text and zero mean: as the run has it. */
export interface Form {
  kinds: Kind[];
  metrics: string[];
  dataset: string;
  folder: string;
  samples: number | null;
  tokens: number | null;
  general: string;
  task: string;
  shots: number | null;
  judgeUrl: string;
  judgeModel: string;
  judgeKey: string;
  tasks: string;
  limit: number | null;
}

export const FRESH: Form = {
  kinds: [],
  metrics: [],
  dataset: "",
  folder: "",
  samples: null,
  tokens: null,
  general: "",
  task: "",
  shots: null,
  judgeUrl: "",
  judgeModel: "",
  judgeKey: "",
  tasks: "",
  limit: null,
};

/** The rows that a run has for evaluation, in words that its settings use; "" where it has none. */
export function heldOut(run: RunDetail | null): string {
  const data = run?.config["data"] ?? {};
  const named = data["eval_dataset"];
  const names = Array.isArray(named) ? named.map(String) : typeof named === "string" && named ? [named] : [];
  if (names.length) return names.join(", ");
  const share = Number(data["val_size"] ?? 0);
  return share > 0 ? `val_size ${share}` : "";
}

const list = (text: string): string[] =>
  text
    .split(",")
    .map((each) => each.trim())
    .filter(Boolean);
const filled = (facts: Record<string, unknown>): Record<string, unknown> =>
  Object.fromEntries(Object.entries(facts).filter(([, value]) => value !== "" && value !== null));

/** Settings on top of those of the sources. */
export function valuesOf(form: Form): Values {
  const has = (kind: Kind): boolean => form.kinds.includes(kind);
  const evaluate: Record<string, unknown> = {
    ...(form.kinds.length && { eval_kinds: form.kinds }),
    ...(form.metrics.length && { eval_metrics: form.metrics }),
    ...filled({ predict_samples: form.samples }),
    ...(has("choice") && filled({ task: form.task, n_shot: form.shots })),
    ...(has("forgetting") && form.general && { eval_general_dataset: list(form.general) }),
    ...(has("judge") && {
      eval_judge: filled({ base_url: form.judgeUrl, model: form.judgeModel, api_key_env: form.judgeKey }),
    }),
    ...(has("harness") && form.tasks && { eval_tasks: list(form.tasks), ...filled({ eval_tasks_limit: form.limit }) }),
  };
  // Rows that are named take the place of those that the run has set aside.
  const data = form.dataset ? { eval_dataset: [form.dataset], dataset_dir: form.folder, val_size: 0 } : {};
  const found: Values = { evaluate, data, generate: filled({ max_new_tokens: form.tokens }) };
  return Object.fromEntries(Object.entries(found).filter(([, section]) => Object.keys(section).length));
}

/** Fields that a chosen kind cannot do without and that are empty. */
export function missing(form: Form, held: string): string[] {
  const needed: [Kind, keyof Form][] = [
    ["choice", "task"],
    ["forgetting", "general"],
    ["judge", "judgeUrl"],
    ["judge", "judgeModel"],
    ["harness", "tasks"],
  ];
  const found = needed.filter(([kind, field]) => form.kinds.includes(kind) && !form[field]).map(([, field]) => field);
  const rows = !form.kinds.length || form.kinds.some((kind) => ["loss", "generate", "judge"].includes(kind));
  return rows && !form.dataset && !held ? ["dataset", ...found] : found;
}
