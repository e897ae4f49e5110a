/** Runs that never began have no folder to delete: what stands in the list is their job. */
import { get, post } from "../../lib/api/client";
import type { RunDetail, RunRow } from "../../lib/api/shapes";

export const neverBegan = ({ state }: Pick<RunRow, "state">): boolean => state === "never started";

/** Take a run that never began off the list. Throws Refusal. */
export async function forget(id: string): Promise<void> {
  const { job } = await get<RunDetail>(`/runs/${encodeURIComponent(id)}`);
  if (job) await post(`/jobs/${encodeURIComponent(job)}/action`, { action: "forget" });
}
