/** Columns of the list of runs. */
import type { RunRow } from "../../lib/api/shapes";
import { age, bytes, duration, number } from "../../lib/format";

export interface Column {
  id: string;
  /** What the server sorts by; none: it cannot be sorted. */
  sort?: string;
  number?: boolean;
  text: (run: RunRow) => string;
  /** What is said on top of a text that is short for it. */
  whole?: (run: RunRow) => string;
}

/** What a model is called: of a folder its own name. */
export const modelName = (model: string): string =>
  /^[./~]/.test(model) ? (model.split("/").filter(Boolean).at(-1) ?? model) : model;

export const COLUMNS: Column[] = [
  { id: "objective", sort: "objective", text: (run) => run.objective },
  { id: "tuning", sort: "tuning", text: (run) => run.tuning },
  { id: "model", sort: "model", text: (run) => modelName(run.model), whole: (run) => run.model },
  { id: "data", text: (run) => run.data.join(", ") },
  {
    id: "steps",
    sort: "step",
    number: true,
    text: (run) => (run.total === null ? number(run.step, 9) : `${number(run.step, 9)}/${number(run.total, 9)}`),
  },
  { id: "loss", sort: "loss", number: true, text: (run) => number(run.loss) },
  {
    id: "best",
    sort: "best",
    number: true,
    text: (run) => (run.best === null ? "–" : `${number(run.best)} ${run.best_metric ?? ""}`),
  },
  { id: "seconds", sort: "seconds", number: true, text: (run) => duration(run.seconds) },
  { id: "bytes", sort: "bytes", number: true, text: (run) => bytes(run.bytes) },
  { id: "created", sort: "created", text: (run) => age(run.created) },
  { id: "updated", sort: "updated", text: (run) => age(run.updated) },
  { id: "tags", text: (run) => (run.tags ?? []).join(", ") },
  { id: "notes", text: (run) => run.notes ?? "" },
];

const USUAL = ["objective", "model", "steps", "loss", "best", "seconds", "bytes", "updated", "tags"];
const KEPT = "runs.columns";

/** Ids of the columns that are shown, as this browser keeps them. */
export function keptColumns(): string[] {
  const kept = localStorage.getItem(KEPT);
  const known = new Set(COLUMNS.map(({ id }) => id));
  return kept === null ? USUAL : kept.split(",").filter((id) => known.has(id));
}
export const keepColumns = (ids: string[]): void => localStorage.setItem(KEPT, ids.join(","));
