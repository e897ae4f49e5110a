/** Which jobs have to be begun so that what was chosen answers. */
import type { NewJob, RunDetail } from "../../lib/api/shapes";
import { parts } from "../../lib/sources.svelte";

type Plan = Pick<NewJob, "name" | "sources" | "options">;

/** Tunings whose result can stand beside the weights of its base, so that one process answers as both. */
const BESIDE: readonly string[] = ["lora", "qlora"];

/** The base of a run, as a source. */
export const baseOf = (run: RunDetail): string => {
  const name = run.config["model"]?.["model_name_or_path"];
  return typeof name === "string" ? name : run.model;
};

/** The name that an adapter answers to: letters, digits, dots and dashes. */
export const nameOf = (source: string): string =>
  source
    .replace(/[^A-Za-z0-9._:-]+/g, "-")
    .replace(/^[-._:]+|[-.:_]+$/g, "")
    .slice(0, 100) || "tuned";

/** `run`: of the source, where it is one. With `both`, what it was made from answers, too. */
export function plans(source: string, run: RunDetail | null, both: boolean): Plan[] {
  const name = parts(source).filter(Boolean).join(" · ");
  if (!run || !both) return [{ name, sources: [source], options: {} }];
  if (BESIDE.includes(run.tuning))
    return [{ name, sources: [baseOf(run)], options: { adapters: { [nameOf(source)]: source } } }];
  return [
    { name: baseOf(run), sources: [baseOf(run)], options: {} },
    { name, sources: [source], options: {} },
  ];
}
