/** Runs that were deleted a moment ago, and may be had back. */
import { post } from "../../lib/api/client";
import type { RunRow } from "../../lib/api/shapes";

interface Deleted {
  id: string;
  /** Milliseconds. */
  until: number;
}

let deleted = $state.raw<Deleted[]>([]);

export const undoable = {
  get now(): Deleted[] {
    return deleted;
  },
  add(id: string, untilSeconds: number): void {
    deleted = [...deleted.filter((each) => each.id !== id), { id, until: untilSeconds * 1000 }];
  },
  /** Leave out what is too late by now. */
  tidy(now = Date.now()): void {
    if (deleted.some(({ until }) => until <= now)) deleted = deleted.filter(({ until }) => until > now);
  },
  /** Bring all of them back. */
  async undo(): Promise<void> {
    for (const { id } of deleted) {
      await post<RunRow>(`/runs/${encodeURIComponent(id)}/undelete`);
      deleted = deleted.filter((each) => each.id !== id);
    }
  },
};
