/** Rows that a search finds, in their order; the search goes on when the end of what was found comes into view. */
import { untrack } from "svelte";
import { get, problemsOf, Refusal } from "../../lib/api/client";
import type { Problem, Shapes } from "../../lib/api/shapes";
import { asQuery, type Chosen } from "./address";
import { PAGE, seen, type RowList, type SeenRow } from "./pages.svelte";

export class FoundRows implements RowList {
  problems = $state.raw<Problem[]>([]);
  #rows = $state.raw<SeenRow[]>([]);
  /** Where the search goes on; null at the end of the file. */
  #next = $state<number | null>(0);
  #wanted = PAGE;
  #running = false;
  #abort = new AbortController();

  constructor(
    readonly chosen: Chosen,
    readonly search: string,
  ) {}

  get total(): number {
    return this.#rows.length;
  }
  get counting(): boolean {
    return this.#next !== null;
  }

  row(index: number): SeenRow | undefined {
    return this.#rows[index];
  }
  at(place: number): SeenRow | undefined {
    return this.#rows.find((each) => each.place === place);
  }
  indexOf(place: number): number {
    return this.#rows.findIndex((each) => each.place === place);
  }

  want(_first: number, end: number): void {
    this.#wanted = Math.max(this.#wanted, end + PAGE / 2);
    untrack(() => void this.#go());
  }
  retry(): void {
    this.problems = [];
    void this.#go();
  }
  close(): void {
    this.#abort.abort();
  }

  async #go(): Promise<void> {
    if (this.#running) return;
    this.#running = true;
    try {
      while (this.#next !== null && this.#rows.length < this.#wanted) {
        const query = { ...asQuery(this.chosen), start: this.#next, count: PAGE, search: this.search };
        const page = await get<Shapes["RowPage"]>("/data/rows", query, this.#abort.signal);
        this.#rows = [...this.#rows, ...page.rows.flatMap((_, i) => seen(page, i) ?? [])];
        this.#next = page.stopped ?? null;
      }
      this.problems = [];
    } catch (error) {
      const away = error instanceof Refusal && error.away;
      if (!this.#abort.signal.aborted && !away) this.problems = problemsOf(error);
    } finally {
      this.#running = false;
    }
  }
}
