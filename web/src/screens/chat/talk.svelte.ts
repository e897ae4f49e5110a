/** A conversation with one or two models at once: the same questions, each with the answers of its own. */
import { problemsOf } from "../../lib/api/client";
import type { Problem } from "../../lib/api/shapes";
import { ask, type Message, type Sampling, type Target, type Told } from "./ask";

export interface Answer {
  /** What answered. */
  name: string;
  text: string;
  thoughts: string;
  state: "waiting" | "growing" | "done" | "stopped" | "failed";
  finish: string;
  promptTokens: number | null;
  tokens: number | null;
  /** From the question to the first piece, and from there to the end. */
  wait: number | null;
  seconds: number | null;
  problems: Problem[];
}

export interface Turn {
  question: string;
  /** One for each column; null where a column was not there. */
  answers: (Answer | null)[];
}

const CONVERSATION = "chat-turns";
const SAMPLING = "chat-sampling";
const FRESH: Sampling = { system: "", temperature: 0, top_p: 1, max_tokens: null, seed: 0, stop: "", plain: false };

function kept<T>(storage: Storage, key: string, otherwise: T): T {
  try {
    return (JSON.parse(storage.getItem(key) ?? "null") as T | null) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export class Talk {
  turns = $state<Turn[]>(asKept());
  how = $state<Sampling>({ ...FRESH, ...kept(localStorage, SAMPLING, {}) });
  targets = $state.raw<(Target | null)[]>([]);
  #stops = new Set<AbortController>();
  #running = $state(0);

  get busy(): boolean {
    return this.#running > 0;
  }

  /** What a column has said and heard before a turn, and its question. */
  messages(column: number, at: number): Message[] {
    const found: Message[] = this.how.system ? [{ role: "system", content: this.how.system }] : [];
    for (const [i, turn] of this.turns.slice(0, at + 1).entries()) {
      const answer = turn.answers[column];
      if (i < at && !answer?.text) continue;
      found.push({ role: "user", content: turn.question });
      if (i < at && answer) found.push({ role: "assistant", content: answer.text });
    }
    return found;
  }

  async send(question: string): Promise<void> {
    this.turns.push({ question, answers: [] });
    await this.#answer(this.turns.length - 1);
  }

  /** Ask a turn's question again, perhaps in other words; what came behind it goes. */
  async again(at: number, question?: string): Promise<void> {
    this.stop();
    const turn = this.turns[at];
    if (!turn) return;
    this.turns.splice(at, this.turns.length - at, { question: question ?? turn.question, answers: [] });
    await this.#answer(at);
  }

  stop(): void {
    for (const each of this.#stops) each.abort();
  }

  clear(): void {
    this.stop();
    this.turns = [];
    this.keep();
  }

  keep(): void {
    localStorage.setItem(SAMPLING, JSON.stringify(this.how));
    try {
      sessionStorage.setItem(CONVERSATION, JSON.stringify(this.turns));
    } catch {
      sessionStorage.removeItem(CONVERSATION); // Longer than a browser keeps: it lasts as long as the page.
    }
  }

  async #answer(at: number): Promise<void> {
    const columns = this.targets.map((target, column) => (target ? this.#column(at, column, target) : null));
    await Promise.all(columns);
    this.keep();
  }

  async #column(at: number, column: number, target: Target): Promise<void> {
    const turn = this.turns[at];
    if (!turn) return;
    turn.answers[column] = { ...NOTHING, name: target.model };
    const answer = turn.answers[column];
    if (!answer) return;
    const stop = new AbortController();
    this.#stops.add(stop);
    this.#running++;
    const began = performance.now();
    try {
      const hear = (piece: Told): void => take(answer, piece, began);
      await ask(target, this.messages(column, at), { ...this.how }, hear, stop.signal);
      answer.state = "done";
    } catch (error) {
      if (stop.signal.aborted) answer.state = "stopped";
      else [answer.state, answer.problems] = ["failed", problemsOf(error).map(spoken)];
    } finally {
      if (answer.wait !== null) answer.seconds = (performance.now() - began) / 1000 - answer.wait;
      this.#stops.delete(stop);
      this.#running--;
    }
  }
}

const NOTHING: Answer = {
  name: "",
  text: "",
  thoughts: "",
  state: "waiting",
  finish: "",
  promptTokens: null,
  tokens: null,
  wait: null,
  seconds: null,
  problems: [],
};

function take(answer: Answer, piece: Told, began: number): void {
  if (piece.text || piece.thoughts) answer.wait ??= (performance.now() - began) / 1000;
  if (piece.text || piece.thoughts) answer.state = "growing";
  if (piece.text) answer.text += piece.text;
  if (piece.thoughts) answer.thoughts += piece.thoughts;
  if (piece.finish) answer.finish = piece.finish;
  if (piece.usage) [answer.promptTokens, answer.tokens] = [piece.usage.prompt_tokens, piece.usage.completion_tokens];
}

/** A lost connection has no words of its own; the screen has some for its code. */
const spoken = (problem: Problem): Problem => ({ ...problem, code: problem.code || "stream" });

/** The conversation of this tab; answers that were growing when the page was left are as far as they had come. */
function asKept(): Turn[] {
  const turns = kept<Turn[]>(sessionStorage, CONVERSATION, []);
  for (const answer of turns.flatMap((turn) => turn.answers)) {
    if (answer && (answer.state === "waiting" || answer.state === "growing")) answer.state = "stopped";
  }
  return turns;
}

/** Tokens a second; null where it cannot be told. The first token belongs to the wait. */
export const speed = (answer: Answer): number | null =>
  answer.tokens && answer.tokens > 1 && answer.seconds ? (answer.tokens - 1) / answer.seconds : null;

/** Whether memory was what was missing. */
export const lacksMemory = (problems: Problem[]): boolean =>
  problems.some((each) => /out.of.memory|memory/i.test(`${each.code} ${each.message}`));
