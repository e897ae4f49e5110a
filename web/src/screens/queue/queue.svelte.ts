/** The jobs of the queue, kept fresh, and what is done to them. */
import { get, patch, post, problemsOf, Refusal } from "../../lib/api/client";
import type { Job, Jobs, Problem, Shapes } from "../../lib/api/shapes";
import { onChange } from "../../lib/changes";
import { ENDED, WAITING } from "../../lib/job.svelte";
import { Resource } from "../../lib/resource.svelte";

const LOOK_EVERY = 2000;
const SOON = 200;

/** A list with one entry at another place. */
export function moved<T>(list: readonly T[], from: number, to: number): T[] {
  const rest = list.filter((_, at) => at !== from);
  const entry = list[from];
  return entry === undefined ? rest : [...rest.slice(0, to), entry, ...rest.slice(to)];
}

export class Queue extends Resource<Jobs> {
  /** What went wrong with the last thing that was asked for. */
  refused = $state.raw<Problem[]>([]);
  unreached = $state(false);
  busy = $state("");
  /** The order as it was just asked for, until the server shows it. */
  #order = $state.raw<string[] | null>(null);

  constructor() {
    super((signal) => get<Jobs>("/jobs", {}, signal));
  }

  readonly waiting = $derived.by(() => {
    const found = (this.value?.jobs ?? []).filter((job) => WAITING.includes(job.state));
    const order = this.#order;
    return order ? [...found].sort((a, b) => order.indexOf(a.id) - order.indexOf(b.id)) : found;
  });
  readonly ended = $derived((this.value?.jobs ?? []).filter((job) => ENDED.includes(job.state)));
  readonly running = $derived(
    (this.value?.jobs ?? []).filter((job) => !WAITING.includes(job.state) && !ENDED.includes(job.state)),
  );

  /** Keep it fresh until the returned function is called. */
  follow(): () => void {
    void this.load();
    let soon: ReturnType<typeof setTimeout> | undefined;
    const forget = onChange((change) => {
      if (change.kind !== "jobs" && change.kind !== "queue" && change.id !== "open") return;
      clearTimeout(soon);
      soon = setTimeout(() => void this.load(), SOON);
    });
    const timer = setInterval(() => {
      if (this.running.length && !this.loading && !document.hidden) void this.load();
    }, LOOK_EVERY);
    return () => {
      forget();
      clearTimeout(soon);
      clearInterval(timer);
    };
  }

  act(job: Job, action: Shapes["JobAction"]["action"]): Promise<boolean> {
    return this.#ask(job.id, () => post(`/jobs/${encodeURIComponent(job.id)}/action`, { action }));
  }

  change(what: Shapes["QueueChange"]): Promise<boolean> {
    return this.#ask("queue", () => patch("/queue", what));
  }

  async move(from: number, to: number): Promise<boolean> {
    const order = moved(
      this.waiting.map((job) => job.id),
      from,
      Math.max(0, Math.min(to, this.waiting.length - 1)),
    );
    this.#order = order;
    const done = await this.change({ order });
    this.#order = null;
    return done;
  }

  async #ask(what: string, send: () => Promise<unknown>): Promise<boolean> {
    this.busy = what;
    try {
      await send();
      this.refused = [];
      this.unreached = false;
      await this.load();
      return true;
    } catch (error) {
      this.unreached = error instanceof Refusal && error.away;
      this.refused = this.unreached ? [] : problemsOf(error);
      return false;
    } finally {
      this.busy = "";
    }
  }
}
