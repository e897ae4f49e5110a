/** Ways to look at the list that were given a name: search, filters, order and columns. This browser keeps them. */
import { COLUMNS } from "./columns";
import { ASKED } from "./search";

export interface View {
  name: string;
  /** Parts of the address. */
  query: Record<string, string>;
  columns: string[];
}

const KEPT = "runs.views";
const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null;

/** Views as they were kept; what is damaged or unknown by now is left out. */
function read(): View[] {
  const found = new Map<string, View>();
  for (const each of parsed(localStorage.getItem(KEPT))) {
    if (!isObject(each) || typeof each["name"] !== "string" || !each["name"].trim()) continue;
    const name = each["name"].trim();
    const query = Object.entries(isObject(each["query"]) ? each["query"] : {}).filter(
      (part): part is [string, string] => ASKED.includes(part[0]) && typeof part[1] === "string",
    );
    const columns = Array.isArray(each["columns"]) ? each["columns"] : [];
    const known = COLUMNS.map(({ id }) => id).filter((id) => columns.includes(id));
    found.set(name, { name, query: Object.fromEntries(query), columns: known });
  }
  return [...found.values()];
}

function parsed(text: string | null): unknown[] {
  try {
    const found: unknown = JSON.parse(text ?? "[]");
    return Array.isArray(found) ? found : [];
  } catch {
    return [];
  }
}

let now = $state.raw(read());
// Another tab may have kept one.
window.addEventListener("storage", ({ key }) => {
  if (key === KEPT || key === null) now = read();
});

function write(next: View[]): void {
  localStorage.setItem(KEPT, JSON.stringify(next));
  now = next;
}

export const views = {
  get now(): View[] {
    return now;
  },
  find: (name: string): View | undefined => now.find((each) => each.name === name),
  /** Keep a view; one of the same name is replaced. */
  keep(view: View): void {
    const has = now.some(({ name }) => name === view.name);
    write(has ? now.map((each) => (each.name === view.name ? view : each)) : [...now, view]);
  },
  /** Give a view another name, which none has yet. */
  rename: (from: string, to: string): void =>
    write(now.map((each) => (each.name === from ? { ...each, name: to } : each))),
  remove: (name: string): void => write(now.filter((each) => each.name !== name)),
};

/** What is looked at now, by a name. */
export function viewOf(name: string, query: URLSearchParams, columns: string[]): View {
  const parts = ASKED.map((key) => [key, query.get(key) ?? ""] as const).filter(([, value]) => value);
  return { name, query: Object.fromEntries(parts), columns };
}

/** The view that is looked at now. */
export function viewAt(query: URLSearchParams, columns: string[]): View | undefined {
  const same = ({ name, ...rest }: View) => JSON.stringify(rest);
  const looked = viewOf("", query, columns);
  return now.find((each) => same({ ...viewOf("", new URLSearchParams(each.query), each.columns) }) === same(looked));
}
