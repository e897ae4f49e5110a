/** Something that is fetched: what is there, whether it is on its way, what went wrong. Old answers never replace newer ones. */
import { problemsOf, Refusal } from "./api/client";
import type { Problem } from "./api/shapes";

export class Resource<T> {
  value = $state.raw<T | null>(null);
  problems = $state.raw<Problem[]>([]);
  loading = $state(false);
  away = $state(false);
  #turn = 0;
  #abort: AbortController | null = null;

  constructor(private readonly fetch: (signal: AbortSignal) => Promise<T>) {}

  async load(): Promise<T | null> {
    const turn = ++this.#turn;
    this.#abort?.abort();
    const abort = (this.#abort = new AbortController());
    this.loading = true;
    try {
      const value = await this.fetch(abort.signal);
      if (turn !== this.#turn) return null;
      this.value = value;
      this.problems = [];
      this.away = false;
      return value;
    } catch (error) {
      if (turn !== this.#turn || abort.signal.aborted) return null;
      this.away = error instanceof Refusal && error.away;
      if (!this.away) this.problems = problemsOf(error);
      return null;
    } finally {
      if (turn === this.#turn) this.loading = false;
    }
  }
}
