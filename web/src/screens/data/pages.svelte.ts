/** Rows of a data set, fetched a page at a time as they come into view; far pages are forgotten. */
import { untrack } from "svelte";
import { get, problemsOf, Refusal } from "../../lib/api/client";
import type { Problem, Shapes } from "../../lib/api/shapes";
import { t } from "../../lib/words.svelte";
import { asQuery, type Chosen } from "./address";

export const PAGE = 100;
const KEPT = 40;
const COUNT_AGAIN = 1500;

export interface SeenRow {
  /** Among the rows of the file, from 0 on. */
  place: number;
  line: number;
  value: unknown;
  /** Why it is no row; empty where it is one. */
  broken: string;
}

/** A list of rows, of which those in view are fetched: all of a file, or those that a search finds. */
export interface RowList {
  readonly total: number;
  readonly counting: boolean;
  readonly problems: Problem[];
  row(index: number): SeenRow | undefined;
  /** The row at a place of the file, where it is there. */
  at(place: number): SeenRow | undefined;
  indexOf(place: number): number;
  want(first: number, end: number): void;
  retry(): void;
  close(): void;
}

/** A row of a page. */
export function seen(page: Shapes["RowPage"], at: number): SeenRow | undefined {
  if (at >= page.rows.length) return undefined;
  const bad = (page.broken ?? []).indexOf(at);
  return {
    place: page.places?.[at] ?? page.start + at,
    line: page.lines[at] ?? 0,
    value: page.rows[at],
    broken: bad < 0 ? "" : (page.problems?.[bad] ?? "") || t("data.brokenHelp"),
  };
}

export class RowPages implements RowList {
  /** Rows in all; while they are being counted, those that are known. */
  total = $state(0);
  counting = $state(true);
  columns = $state.raw<Shapes["Column"][]>([]);
  problems = $state.raw<Problem[]>([]);
  away = $state(false);
  #pages = $state.raw<ReadonlyMap<number, Shapes["RowPage"]>>(new Map());
  #asked = new Set<number>();
  #wanted: [number, number] = [0, PAGE];
  #abort = new AbortController();
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(readonly chosen: Chosen) {}

  row(index: number): SeenRow | undefined {
    const page = this.#pages.get(Math.floor(index / PAGE));
    return page && seen(page, index % PAGE);
  }

  at(place: number): SeenRow | undefined {
    return this.row(place);
  }

  indexOf(place: number): number {
    return place;
  }

  /** Fetch what of [first, end) is not there yet, a moment later: quick scrolling asks for nothing on the way. */
  want(first: number, end: number): void {
    this.#wanted = [first, Math.max(end, first + 1)];
    clearTimeout(this.#timer);
    // Whoever wants rows does not depend on which there are.
    const begun = untrack(() => this.#pages.size > 0);
    this.#timer = setTimeout(() => this.#fetch(), begun ? 60 : 0);
  }

  retry(): void {
    this.problems = [];
    this.#asked.clear();
    this.#fetch();
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#abort.abort();
  }

  /** Place of the row that begins on a line of the file, or of the last one before it. */
  async find(line: number): Promise<number> {
    if (!this.total) this.#take(0, await this.#get(0, PAGE));
    let [low, high] = [0, Math.max(0, this.total - 1)];
    let guess = Math.min(high, Math.max(0, line - 1));
    while (low <= high) {
      const page = await this.#get(guess, 1);
      const there = page.lines[0];
      if (there === line) return guess;
      if (there === undefined || there > line) high = guess - 1;
      else low = guess + 1;
      guess = Math.floor((low + high) / 2);
    }
    return Math.max(0, high);
  }

  #get(start: number, count: number): Promise<Shapes["RowPage"]> {
    const query = { ...asQuery(this.chosen), start, count };
    return get<Shapes["RowPage"]>("/data/rows", query, this.#abort.signal);
  }

  #fetch(): void {
    const [first, end] = this.#wanted;
    for (let page = Math.floor(first / PAGE); page <= Math.floor((end - 1) / PAGE); page++) {
      if (!this.#asked.has(page)) void this.#load(page);
    }
  }

  async #load(page: number): Promise<void> {
    this.#asked.add(page);
    try {
      this.#take(page, await this.#get(page * PAGE, PAGE));
    } catch (error) {
      this.#asked.delete(page);
      if (this.#abort.signal.aborted) return;
      this.away = error instanceof Refusal && error.away;
      if (!this.away) this.problems = problemsOf(error);
    }
  }

  #take(page: number, found: Shapes["RowPage"]): void {
    const pages = new Map(this.#pages).set(page, found);
    const here = Math.floor(this.#wanted[0] / PAGE);
    if (pages.size > KEPT) {
      const far = [...pages.keys()].sort((a, b) => Math.abs(b - here) - Math.abs(a - here))[0];
      if (far !== undefined && pages.delete(far)) this.#asked.delete(far);
    }
    this.#pages = pages;
    this.problems = [];
    this.away = false;
    if (found.columns.length) this.columns = found.columns;
    const known = this.counting && found.total != null;
    this.counting = found.total == null;
    this.total =
      found.total ?? Math.max(this.total, found.start + found.rows.length + (found.rows.length < PAGE ? 0 : PAGE));
    if (this.counting) setTimeout(() => this.#count(), COUNT_AGAIN);
    if (known) this.#fill();
  }

  /** Fetch what is missing once all rows are known: until then pages end with a row that is too large. */
  #fill(): void {
    for (const [page, { rows }] of this.#pages) {
      if (rows.length < Math.min(PAGE, this.total - page * PAGE)) this.#asked.delete(page);
    }
    this.#fetch();
  }

  async #count(): Promise<void> {
    if (!this.counting || this.#abort.signal.aborted) return;
    try {
      const { total } = await this.#get(0, 1);
      if (total == null) setTimeout(() => this.#count(), COUNT_AGAIN);
      else {
        [this.total, this.counting] = [total, false];
        this.#fill();
      }
    } catch {
      // The rows that are in view tell of what is wrong; counting goes on with the next page that is read.
    }
  }
}
