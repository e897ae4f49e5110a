/** Results of evaluations as a table: a number for each model, with its interval, and how far it is from the other one. */

export type Interval = [number, number] | null;
interface Facts {
  value: number | null;
  interval: Interval;
  rows: number;
  better: "higher" | "lower" | "neither";
  detail?: boolean;
}
interface Difference {
  value: number | null;
  interval: Interval;
  rows: number;
}

/** One model, as results.json has it. */
export interface Model {
  model: string;
  measures: Record<string, Facts>;
  against: string | null;
  differences: Record<string, Difference>;
  notes: string[];
}

/** What a difference says: nothing is proven where its interval holds 0, or where there is none. */
export type Verdict = "better" | "worse" | "open" | "none";

export interface Line extends Facts {
  model: string;
  difference: Difference | null;
  verdict: Verdict;
}
export interface Row {
  name: string;
  kind: string;
  metric: string;
  detail: boolean;
  better: Facts["better"];
  lines: Line[];
}

export function verdict(better: Facts["better"], difference: Difference | null | undefined): Verdict {
  if (!difference || difference.value === null) return "none";
  if (better === "neither" || !difference.interval) return "open";
  const [low, high] = difference.interval;
  if (low <= 0 && high >= 0) return "open";
  return low > 0 === (better === "higher") ? "better" : "worse";
}

/** Every number in the order of the results; parts of others (subjects, fields) where asked for. */
export function table(models: readonly Model[], details: boolean): Row[] {
  const names = [...new Set(models.flatMap((each) => Object.keys(each.measures)))];
  return names
    .map((name): Row => {
      const lines = models.flatMap((each): Line[] => {
        const facts = each.measures[name];
        if (!facts) return [];
        const difference = each.differences[name] ?? null;
        return [{ ...facts, model: each.model, difference, verdict: verdict(facts.better, difference) }];
      });
      const [kind = "", metric = ""] = [name.slice(0, name.indexOf("/")), name.slice(name.indexOf("/") + 1)];
      const first = lines[0];
      return { name, kind, metric, detail: first?.detail ?? false, better: first?.better ?? "neither", lines };
    })
    .filter((row) => details || !row.detail);
}

/** Models without the folders that they lie in: "base /models/tiny" -> "base tiny"; of a checkpoint its run, too. */
export function shortModel(text: string): string {
  return text
    .split(" ")
    .map((word) => {
      if (!word.startsWith("/")) return word;
      const parts = word.split("/");
      return parts.slice(parts.at(-1)?.startsWith("checkpoint-") ? -2 : -1).join("/");
    })
    .join(" ");
}

/** Digits as the command line has them. */
export function digits(value: number): number {
  const size = Math.abs(value);
  return size < 10 ? 3 : size < 100 ? 2 : 1;
}

export interface Item {
  prompt: string;
  expected: string;
  before: string;
  after: string;
  before_score: number | null;
  after_score: number | null;
}

/** How much better the second answer is; null where one of them has no grade. */
export const gain = (item: Item): number | null =>
  item.before_score === null || item.after_score === null ? null : item.after_score - item.before_score;

/** Those that changed most in each direction, the largest change first. */
export function changed(items: readonly Item[], most: number): { better: Item[]; worse: Item[] } {
  const by = (sign: number): Item[] =>
    items
      .filter((item) => (gain(item) ?? 0) * sign > 0)
      .sort((a, b) => ((gain(b) ?? 0) - (gain(a) ?? 0)) * sign)
      .slice(0, most);
  return { better: by(1), worse: by(-1) };
}

/** "runs/tickets/evaluation/first" -> run and name; null for a folder elsewhere. */
export function placeOf(folder: string): { run: string; name: string } | null {
  const found = /([^/]+)\/evaluation\/([^/]+)\/?$/.exec(folder);
  return found?.[1] && found[2] ? { run: found[1], name: found[2] } : null;
}
