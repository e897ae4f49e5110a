/** Kinds of findings: which are looked at, and which cleaning can take out of a file. */
import type { Shapes } from "../../lib/api/shapes";

const LEVELS = ["error", "warning", "note"] as const;
export type Level = (typeof LEVELS)[number];
export { LEVELS };

export function levelOf(audit: Shapes["Audit"] | null, kind: string): Level {
  return LEVELS.find((each) => each === audit?.levels?.[kind]) ?? "note";
}

/** Kinds with the number of their findings, the worst first. */
export function countsOf(audit: Shapes["Audit"] | null): [string, number][] {
  const rank = (kind: string): number => LEVELS.indexOf(levelOf(audit, kind));
  return Object.entries(audit?.counts ?? {}).sort(([a], [b]) => rank(a) - rank(b) || a.localeCompare(b));
}

/** Of some kinds, those about rows that can be left out; none where the file is another one by now. */
export function mendable(audit: Shapes["Audit"] | null, kinds: string[]): string[] {
  if (!audit || audit.stale) return [];
  const ofRows = new Set((audit.findings ?? []).filter((each) => each.row !== null).map((each) => each.kind));
  return kinds.filter((kind) => ofRows.has(kind));
}

/** What is to go unless somebody says otherwise: what was asked for, or else what cannot be trained on. */
export function chosenKinds(audit: Shapes["Audit"] | null, kinds: string[], asked: string | null): string[] {
  const named = (asked ?? "").split(",").filter((kind) => kinds.includes(kind));
  return named.length ? named : kinds.filter((kind) => levelOf(audit, kind) === "error");
}
