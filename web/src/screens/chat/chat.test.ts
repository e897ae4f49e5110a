import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { RunDetail } from "../../lib/api/shapes";
import { bodyOf } from "./ask";
import { plans } from "./loading";
import { lacksMemory, speed, Talk } from "./talk.svelte";

const chunk = (facts: object): string => `data: ${JSON.stringify(facts)}\n\n`;
const piece = (content: string, finish: string | null = null): string =>
  chunk({ choices: [{ delta: { content }, finish_reason: finish }] });
const END = chunk({ choices: [], usage: { prompt_tokens: 9, completion_tokens: 3 } }) + "data: [DONE]\n\n";

const asked: { address: string; body: Record<string, unknown> }[] = [];
/** The stream of an endless answer; a stop breaks it, as a browser does. */
let broken: ReadableStreamDefaultController;
let answers: Record<string, () => Response> = {};

beforeEach(() => {
  asked.length = 0;
  sessionStorage.clear();
  localStorage.clear();
  vi.stubGlobal("fetch", (address: string, options: { body: string; signal: AbortSignal }) => {
    const body = JSON.parse(options.body) as Record<string, unknown>;
    asked.push({ address, body });
    const reply = answers[String(body["model"])]?.() ?? new Response("{}", { status: 500 });
    options.signal.addEventListener("abort", () => broken.error(new DOMException("", "AbortError")));
    return Promise.resolve(reply);
  });
});
afterEach(() => vi.unstubAllGlobals());

function talk(...models: string[]): Talk {
  const made = new Talk();
  made.targets = models.map((model) => ({ job: "job-1234", model }));
  return made;
}

describe("a conversation", () => {
  it("puts one question with one seed to both models, and each hears its own answers", async () => {
    answers = {
      base: () => new Response(piece("A") + piece("!", "stop") + END),
      tuned: () => new Response(piece("B", "length") + END),
    };
    const made = talk("base", "tuned");
    made.how.system = "Be short.";
    made.how.seed = 7;
    await made.send("one");
    await made.send("two");
    expect(made.turns[0]?.answers.map((each) => each?.text)).toEqual(["A!", "B"]);
    expect(made.turns[0]?.answers[1]).toMatchObject({ state: "done", finish: "length", promptTokens: 9, tokens: 3 });
    expect(asked.map((each) => each.body["seed"])).toEqual([7, 7, 7, 7]);
    expect(asked[3]?.address).toBe("/api/serving/job-1234/v1/chat/completions");
    expect(asked[3]?.body["messages"]).toEqual([
      { role: "system", content: "Be short." },
      { role: "user", content: "one" },
      { role: "assistant", content: "B" },
      { role: "user", content: "two" },
    ]);
  });

  it("says when an answer broke off, with what had come", async () => {
    answers = {
      cut: () => new Response(piece("half")),
      broken: () => new Response(piece("ha") + chunk({ error: { message: "out of memory", code: "out_of_memory" } })),
      refused: () =>
        new Response(JSON.stringify({ error: { message: "no such model", code: "model" } }), { status: 404 }),
    };
    const made = talk("cut", "broken", "refused");
    await made.send("q");
    const [cut, broken, refused] = made.turns[0]?.answers ?? [];
    expect(cut).toMatchObject({ text: "half", state: "failed", problems: [{ code: "away" }] });
    expect(broken).toMatchObject({ text: "ha", state: "failed", problems: [{ message: "out of memory" }] });
    expect(lacksMemory(broken?.problems ?? [])).toBe(true);
    expect(refused).toMatchObject({ text: "", state: "failed", problems: [{ message: "no such model" }] });
  });

  it("stops on both sides, and asks again in other words without what came behind", async () => {
    const begun = (control: ReadableStreamDefaultController): void => {
      broken = control;
      control.enqueue(new TextEncoder().encode(piece("a")));
    };
    const endless = (): Response => new Response(new ReadableStream({ start: begun }));
    answers = { slow: endless, quick: () => new Response(piece("x", "stop") + END) };
    const made = talk("slow");
    const sent = made.send("one");
    await vi.waitFor(() => expect(made.turns[0]?.answers[0]?.text).toBe("a"));
    expect(made.busy).toBe(true);
    made.stop();
    await sent;
    expect(made.turns[0]?.answers[0]).toMatchObject({ text: "a", state: "stopped" });
    expect(made.busy).toBe(false);

    made.targets = [{ job: "job-1234", model: "quick" }];
    await made.send("two");
    await made.again(0, "three");
    expect(made.turns.map((turn) => turn.question)).toEqual(["three"]);
    expect(made.turns[0]?.answers[0]?.text).toBe("x");
  });

  it("is there after a reload", async () => {
    answers = { base: () => new Response(piece("A", "stop") + END) };
    const made = talk("base");
    made.how.temperature = 0.5;
    await made.send("one");
    expect(new Talk().turns[0]?.answers[0]?.text).toBe("A");
    expect(new Talk().how.temperature).toBe(0.5);
    made.clear();
    expect(new Talk().turns).toEqual([]);
  });

  it("knows its speed without the wait for the first token", () => {
    const answer = { tokens: 21, seconds: 2, wait: 5 };
    expect(speed(answer as never)).toBe(10);
    expect(speed({ ...answer, tokens: 1 } as never)).toBeNull();
  });
});

describe("a request", () => {
  const how = { system: "", temperature: 0, top_p: 1, max_tokens: 5, seed: 1, stop: "END\n\n\\n", plain: true };
  it("without a template is the text alone", () => {
    const body = bodyOf({ job: "j", model: "m" }, [{ role: "user", content: "Once" }], how);
    expect(body).toMatchObject({ prompt: "Once", stop: ["END", "\\n"], max_tokens: 5 });
    expect(body).not.toHaveProperty("messages");
    expect(bodyOf({ job: "j", model: "m" }, [], { ...how, max_tokens: null })).toMatchObject({ max_tokens: 128 });
    const chat = bodyOf({ job: "j", model: "m" }, [], { ...how, max_tokens: null, plain: false });
    expect(chat).not.toHaveProperty("max_tokens");
    expect(bodyOf({ job: "j", model: "m" }, [], { ...how, stop: "" })).not.toHaveProperty("stop");
  });
});

describe("loading", () => {
  const run = (tuning: string): RunDetail =>
    ({ id: "my-run", tuning, model: "smollm2", config: { model: { model_name_or_path: "smollm2-135m" } } }) as never;
  it("takes one process for a base and its LoRA", () => {
    expect(plans("my-run/checkpoint-5", run("lora"), true)).toEqual([
      {
        name: "my-run · checkpoint-5",
        sources: ["smollm2-135m"],
        options: { adapters: { "my-run-checkpoint-5": "my-run/checkpoint-5" } },
      },
    ]);
  });
  it("takes two where all weights have changed", () => {
    expect(plans("my-run", run("full"), true).map((each) => each.sources)).toEqual([["smollm2-135m"], ["my-run"]]);
    expect(plans("my-run", run("full"), false).map((each) => each.sources)).toEqual([["my-run"]]);
    expect(plans("smollm2-135m", null, true).map((each) => each.sources)).toEqual([["smollm2-135m"]]);
  });
});
