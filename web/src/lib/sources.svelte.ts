/** What can be evaluated, talked to and exported: runs, their checkpoints, and models. */
import { get } from "./api/client";
import type { ModelRow, RunDetail, RunPage, RunRow, Shapes } from "./api/shapes";
import { Resource } from "./resource.svelte";

/** Runs that a list offers; older ones are found by their name. */
export const OFFERED = 200;
const NEVER: readonly RunRow["state"][] = ["never started", "queued", "starting"];

export const runs = (): Resource<RunPage> =>
  new Resource((signal) =>
    get<RunPage>("/runs", { sort: "updated", descending: true, count: OFFERED, archived: false }, signal),
  );
export const models = (): Resource<Shapes["Models"]> =>
  new Resource((signal) => get<Shapes["Models"]>("/models", {}, signal));
export const run = (id: () => string): Resource<RunDetail | null> =>
  new Resource(async (signal) => (id() ? await get<RunDetail>(`/runs/${encodeURIComponent(id())}`, {}, signal) : null));

/** Whether a run has a model that can be used. */
export const usable = (row: RunRow): boolean => !NEVER.includes(row.state);

/** "run/checkpoint-5" -> ["run", "checkpoint-5"]; a run itself has an empty checkpoint. */
export function parts(source: string): [run: string, checkpoint: string] {
  const found = /^(.+)\/(checkpoint-[^/]+)$/.exec(source);
  return found?.[1] && found[2] ? [found[1], found[2]] : [source, ""];
}

/** What a model is called in a list: of a folder its own name. */
export const called = (row: ModelRow): string =>
  row.kind === "folder" ? (row.name.split("/").filter(Boolean).at(-1) ?? row.name) : row.name;

/** Models that are on this machine first, runs left out: they have a list of their own. */
export const sorted = (found: ModelRow[]): ModelRow[] =>
  found.filter((each) => each.kind !== "run").sort((a, b) => Number(b.here) - Number(a.here));
