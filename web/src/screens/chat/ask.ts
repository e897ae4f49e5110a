/** One question to a model that is served, and the answer piece by piece. */
import { Refusal, send } from "../../lib/api/client";
import type { Problem } from "../../lib/api/shapes";
import { events } from "../../lib/stream";

export interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

/** How answers are drawn; the same for every column. */
export interface Sampling {
  system: string;
  temperature: number;
  top_p: number;
  /** null: as many as there is room for. */
  max_tokens: number | null;
  seed: number;
  /** One text a line. */
  stop: string;
  /** Go on with the text as it is, without a chat template. */
  plain: boolean;
}

/** A served model: its job, and the name that it answers to. */
export interface Target {
  job: string;
  model: string;
}

export interface Told {
  text?: string;
  thoughts?: string;
  finish?: string;
  usage?: { prompt_tokens: number; completion_tokens: number };
}

export const MOST_STOPS = 16;
export const PLAIN_TOKENS = 128;

/** The body of the request. In plain mode only the last message is sent, as text. */
export function bodyOf(target: Target, messages: Message[], how: Sampling): Record<string, unknown> {
  const stop = how.stop.split("\n").filter(Boolean).slice(0, MOST_STOPS);
  return {
    model: target.model,
    ...(how.plain ? { prompt: messages.at(-1)?.content ?? "" } : { messages }),
    stream: true,
    stream_options: { include_usage: true },
    temperature: how.temperature,
    top_p: how.top_p,
    ...limit(how),
    seed: how.seed,
    ...(stop.length && { stop }),
  };
}

/** Texts that go on without a template rarely end by themselves, so they always have a limit. */
const limit = (how: Sampling): { max_tokens?: number } =>
  how.max_tokens !== null ? { max_tokens: how.max_tokens } : how.plain ? { max_tokens: PLAIN_TOKENS } : {};

interface Chunk {
  choices?: {
    delta?: { content?: string | null; reasoning_content?: string | null };
    text?: string;
    finish_reason?: string | null;
  }[];
  usage?: Told["usage"] | null;
  error?: Problem;
}

/**
 * Ask, and hand on what comes. Throws Refusal for a refusal, and for an answer that broke off; AbortError when stopped.
 * Closing the connection stops the model within a token.
 */
export async function ask(
  target: Target,
  messages: Message[],
  how: Sampling,
  told: (piece: Told) => void,
  signal: AbortSignal,
): Promise<void> {
  const path = `/serving/${encodeURIComponent(target.job)}/v1/${how.plain ? "completions" : "chat/completions"}`;
  const reply = await send("POST", path, { body: bodyOf(target, messages, how), signal });
  for await (const event of events(reply)) {
    if (event.data === "[DONE]") return;
    const chunk = JSON.parse(event.data) as Chunk;
    if (chunk.error)
      throw new Refusal(500, [{ ...chunk.error, code: chunk.error.code ?? "stream", field: null, place: null }]);
    const choice = chunk.choices?.[0];
    const piece: Told = {};
    const text = choice?.delta?.content ?? choice?.text;
    if (text) piece.text = text;
    if (choice?.delta?.reasoning_content) piece.thoughts = choice.delta.reasoning_content;
    if (choice?.finish_reason) piece.finish = choice.finish_reason;
    if (chunk.usage) piece.usage = chunk.usage;
    told(piece);
  }
  // What ends without [DONE] is not the whole answer.
  throw new Refusal(0, [{ code: "away", message: "", field: null, place: null }]);
}
