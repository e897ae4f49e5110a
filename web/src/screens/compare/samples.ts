/** Answers of several runs, put beside each other by their prompt. */
interface Answer {
  step: number;
  text: string;
  reward: number | null;
}
export interface Side {
  prompt: string;
  /** In the order of the runs; undefined where a run has no answer to this prompt. */
  answers: (Answer | undefined)[];
}

interface Completion {
  text?: string;
  turns?: { role: string; content: string }[];
  reward?: number | null;
}

/** The best answer of each run to each prompt; prompts that most runs have come first. */
export function sideBySide(groups: Record<string, unknown>[][]): Side[] {
  const found = new Map<string, Side>();
  groups.forEach((of, run) => {
    for (const group of of) {
      const prompt = String(group["prompt"] ?? "");
      const best = ((group["completions"] ?? []) as Completion[]).reduce<Completion | undefined>(
        (kept, each) => (kept && (kept.reward ?? -Infinity) >= (each.reward ?? -Infinity) ? kept : each),
        undefined,
      );
      if (!best) continue;
      const side = found.get(prompt) ?? { prompt, answers: groups.map(() => undefined) };
      const text = best.turns?.map(({ role, content }) => `${role}: ${content}`).join("\n") ?? best.text ?? "";
      side.answers[run] ??= { step: Number(group["step"]), text, reward: best.reward ?? null };
      found.set(prompt, side);
    }
  });
  const count = ({ answers }: Side) => answers.filter(Boolean).length;
  return [...found.values()].sort((a, b) => count(b) - count(a));
}
