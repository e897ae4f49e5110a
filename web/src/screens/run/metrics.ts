/** Which metrics stand together in a chart, and in which order; what no chart names stands under "more". */
import { bytes, duration, number, percent } from "../../lib/format";

export interface ChartPlan {
  id: string;
  /** Names, or beginnings of names that end in "/". */
  metrics: string[];
  show: (value: number) => string;
  /** A quantity whose logarithm says nothing. */
  linear?: boolean;
}

/** Ticks that lie close together are told apart. */
const gigabytes = (value: number) => (value >= 1e9 ? `${number(value / 1e9, 6)} GB` : bytes(value));

const MAIN: ChartPlan[] = [
  { id: "loss", metrics: ["loss", "eval_loss"], show: number },
  { id: "reward", metrics: ["reward", "reward_std", "eval_reward"], show: number, linear: true },
  { id: "rewards", metrics: ["reward/"], show: number, linear: true },
  { id: "margins", metrics: ["rewards/chosen", "rewards/rejected", "rewards/margins"], show: number, linear: true },
  { id: "accuracy", metrics: ["rewards/accuracies", "accuracy", "eval_accuracy"], show: percent, linear: true },
  { id: "kl", metrics: ["policy/kl", "rollout/kl"], show: number, linear: true },
  { id: "entropy", metrics: ["policy/entropy"], show: number, linear: true },
  { id: "lengths", metrics: ["rollout/tokens"], show: number },
  { id: "cut", metrics: ["rollout/cut_off", "reward/failed", "rollout/flat_groups"], show: percent, linear: true },
  { id: "clip", metrics: ["policy/clip", "policy/clip_low", "policy/clip_high"], show: percent, linear: true },
  { id: "rate", metrics: ["learning_rate"], show: number },
  { id: "norm", metrics: ["grad_norm"], show: number },
  { id: "speed", metrics: ["tokens_per_second"], show: number },
  { id: "memory", metrics: ["peak_memory_bytes"], show: gigabytes, linear: true },
];

/** Shown as numbers elsewhere, or only there to compute with. */
const NOT_CHARTED = new Set(["epoch", "tokens"]);
const SECONDS = /(^|_)seconds(_|$)/;

/** The charts of a run: those that have a metric, with their metrics; then one for each of the others. */
export function plan(names: Iterable<string>): { main: ChartPlan[]; more: ChartPlan[] } {
  const left = new Set([...names].filter((name) => !NOT_CHARTED.has(name)));
  const take = (wanted: string): string[] => {
    const found = wanted.endsWith("/")
      ? [...left].filter((name) => name.startsWith(wanted))
      : left.has(wanted)
        ? [wanted]
        : [];
    found.forEach((name) => left.delete(name));
    return found;
  };
  // Exact names first: a chart that takes a whole family leaves them to the others.
  const exact = new Map(
    MAIN.map((each) => [each.id, each.metrics.filter((name) => !name.endsWith("/")).flatMap(take)]),
  );
  const main = MAIN.map((each) => ({
    ...each,
    metrics: [...exact.get(each.id)!, ...each.metrics.filter((name) => name.endsWith("/")).flatMap(take)],
  })).filter(({ metrics }) => metrics.length);
  const more = [...left]
    .sort()
    .map((name) => ({ id: name, metrics: [name], show: SECONDS.test(name) ? lasting : number }));
  return { main, more };
}

/** Seconds of a step are often parts of one. */
const lasting = (value: number) => (value < 60 ? `${number(value, 3)} s` : duration(value));
