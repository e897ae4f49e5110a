/** One job that a screen follows. */
import { get } from "./api/client";
import type { Job } from "./api/shapes";
import { onChange } from "./changes";
import { Resource } from "./resource.svelte";

type State = Job["state"];
export const WAITING: readonly State[] = ["held", "queued"];
export const ENDED: readonly State[] = ["done", "stopped", "failed", "crashed", "cancelled"];
const LOOK_EVERY = 2000;

export class Followed extends Resource<Job> {
  constructor(readonly id: string) {
    super((signal) => get<Job>(`/jobs/${encodeURIComponent(id)}`, {}, signal));
  }

  get ended(): boolean {
    return this.value !== null && ENDED.includes(this.value.state);
  }

  /** Keep it fresh until the returned function is called: on every change, and while it works every two seconds. */
  follow(): () => void {
    void this.load();
    const forget = onChange((change) => {
      if (change.kind === "jobs" && change.id === this.id) void this.load();
    });
    const timer = setInterval(() => {
      if (!this.ended && !this.loading && !document.hidden) void this.load();
    }, LOOK_EVERY);
    return () => {
      forget();
      clearInterval(timer);
    };
  }
}
