/** States of a run: how they look, and what may be done in them. */
import type { RunRow } from "../../lib/api/shapes";

export type RunState = RunRow["state"];
type Kind = "good" | "warn" | "bad" | "quiet";

const KINDS: Record<RunState, Kind> = {
  "never started": "quiet",
  queued: "quiet",
  starting: "quiet",
  running: "good",
  saving: "good",
  stopping: "warn",
  stopped: "warn",
  done: "good",
  failed: "bad",
  crashed: "bad",
};

export const STATES = Object.keys(KINDS) as RunState[];
export const kindOf = (state: RunState): Kind => KINDS[state];

const AT_WORK = new Set<string>(["queued", "starting", "running", "saving", "stopping"]);
/** Whether a process trains it, or will. */
export const isAtWork = (state: string): boolean => AT_WORK.has(state);
/** Whether a process trains it that can be told to save or to stop. */
export const isLive = (state: string): boolean => AT_WORK.has(state) && state !== "queued";
