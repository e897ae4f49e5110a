import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { TrainingForm } from "./form.svelte";

type Body = { yaml?: string; values?: Record<string, Record<string, unknown>> };
type Reply = Record<string, unknown>;

const DRAFT = "draft-test";
let asked: { path: string; body: Body }[] = [];
let answers: Record<string, (body: Body) => Reply | Promise<Reply>> = {};

const looked = (changes: Reply): Reply => ({
  ok: true,
  problems: [],
  notices: [],
  places: {},
  resolved: {},
  ...changes,
});
const json = (body: Reply): Response => new Response(JSON.stringify(body), { status: 200 });

beforeEach(() => {
  vi.useFakeTimers();
  localStorage.clear();
  asked = [];
  answers = {
    "/api/config/look": (body) => looked({ values: body.values ?? { train: { seed: 3 } }, yaml: "seed: 3\n" }),
    "/api/estimate": () => ({ peak_bytes: 10, available_bytes: 20, fits: true, parts: [], lines: [] }),
  };
  vi.stubGlobal("fetch", async (path: string, options: { body: string }) => {
    const body = JSON.parse(options.body) as Body;
    asked.push({ path, body });
    return json((await answers[path]?.(body)) ?? {});
  });
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

const broken = (): Reply => looked({ ok: false, problems: [{ code: "config", message: "not YAML" }], values: {} });

describe("form and text", () => {
  it("writes the text from the fields, after one request for many changes", async () => {
    const form = new TrainingForm(DRAFT);
    form.set("train.seed", 1);
    form.set("train.seed", 3);
    await vi.advanceTimersByTimeAsync(300);
    expect(asked).toEqual([{ path: "/api/config/look", body: { values: { train: { seed: 3 } } } }]);
    expect(form.text).toBe("seed: 3\n");
  });

  it("fills the fields from the text and leaves the text as it was typed", async () => {
    const form = new TrainingForm(DRAFT);
    form.type("seed: 3 # mine");
    await vi.advanceTimersByTimeAsync(300);
    expect(form.given("train.seed")).toBe(3);
    expect(form.text).toBe("seed: 3 # mine");
    form.set("train.seed", 4);
    expect(form.replaced).toBe("seed: 3 # mine");
    await vi.advanceTimersByTimeAsync(300);
    form.bringBack();
    expect(form.text).toBe("seed: 3 # mine");
  });

  it("never loses a broken text, and lets nothing be changed beside it", async () => {
    answers["/api/config/look"] = broken;
    const form = new TrainingForm(DRAFT);
    form.values = { train: { seed: 1 } };
    form.type("seed: [");
    await vi.advanceTimersByTimeAsync(300);
    expect(form.unreadable).toBe(true);
    form.set("train.seed", 2);
    form.choose("tuning", "full");
    form.take("try", { train: { seed: 5 } });
    expect(form.values).toEqual({ train: { seed: 1 } });
    expect(form.text).toBe("seed: [");
    form.discard();
    expect(form.replaced).toBe("seed: [");
    form.bringBack();
    expect(form.text).toBe("seed: [");
  });

  it("ignores an answer about an older text", async () => {
    let answer: (reply: Reply) => void = () => {};
    answers["/api/config/look"] = (body) =>
      body.yaml === "seed: 1"
        ? new Promise((resolve) => (answer = resolve))
        : looked({ values: { train: { seed: 2 } } });
    const form = new TrainingForm(DRAFT);
    form.type("seed: 1");
    await vi.advanceTimersByTimeAsync(300);
    form.type("seed: 2");
    await vi.advanceTimersByTimeAsync(300);
    answer(looked({ values: { train: { seed: 1 } } }));
    await vi.advanceTimersByTimeAsync(10);
    expect(form.given("train.seed")).toBe(2);
  });

  it("keeps the settings of a method until it is taken again", () => {
    const form = new TrainingForm(DRAFT);
    form.setAll({ "tuning.name": "lora", "tuning.rank": 32 });
    form.choose("tuning", "full");
    expect(form.values["tuning"]).toEqual({ name: "full" });
    form.choose("tuning", "lora");
    expect(form.values["tuning"]).toEqual({ name: "lora", rank: 32 });
  });

  it("takes back what a preset set, but not what somebody changed", () => {
    const form = new TrainingForm(DRAFT);
    form.take("try", { train: { seed: 1, save_steps: 10 } });
    form.set("train.seed", 7);
    form.take("careful", { train: { learning_rate: 1e-5 } });
    expect(form.values).toEqual({ train: { seed: 7, learning_rate: 1e-5 } });
    expect(form.source("train.learning_rate")).toBe("careful");
    expect(form.source("train.seed")).toBe("form");
  });

  it("marks an estimate as old once something has changed", async () => {
    const form = new TrainingForm(DRAFT);
    form.set("train.seed", 3);
    await vi.advanceTimersByTimeAsync(2000);
    expect(form.estimate?.peak_bytes).toBe(10);
    expect(form.estimateIsOld).toBe(false);
    form.set("train.seed", 4);
    expect(form.estimateIsOld).toBe(true);
  });
});

describe("settings of a run", () => {
  it("are taken at their shortest, without what belongs to the run", async () => {
    const short = "seed: 3\noutput_dir: runs/a\n";
    answers["/api/config/look"] = (body) =>
      looked({
        values: body.values ?? {
          train: { seed: 3, output_dir: "runs/a", ...(body.yaml !== short && { resume: "never" }) },
        },
        yaml: body.values ? "seed: 3\n" : short,
      });
    const form = new TrainingForm(DRAFT);
    await form.begin({ yaml: "train:\n  seed: 3\n  output_dir: runs/a\n  resume: never\n" });
    expect(form.values).toEqual({ train: { seed: 3 } });
    expect(form.replaced).toBeNull();
    await vi.advanceTimersByTimeAsync(300);
    expect(form.text).toBe("seed: 3\n");
  });
});

describe("starting", () => {
  it("asks again for the same start under the same id, and for another one under another", () => {
    const form = new TrainingForm(DRAFT);
    form.set("train.seed", 3);
    const first = form.job("now", null);
    expect(form.job("now", null).request_id).toBe(first.request_id);
    form.set("train.seed", 4);
    const second = form.job("now", null);
    expect(second.request_id).not.toBe(first.request_id);
    form.started();
    expect(form.job("now", null).request_id).not.toBe(second.request_id);
  });

  it("is one start in two tabs that show one draft", async () => {
    const one = new TrainingForm(DRAFT);
    one.set("train.seed", 3);
    one.name = "mine";
    await vi.advanceTimersByTimeAsync(1000);
    const other = new TrainingForm(DRAFT);
    other.restore();
    await vi.advanceTimersByTimeAsync(1000);
    expect(other.job("now", null).request_id).toBe(one.job("now", null).request_id);
    expect(other.job("queue", null).request_id).not.toBe(one.job("now", null).request_id);
    other.set("train.seed", 4);
    expect(other.job("now", null).request_id).not.toBe(one.job("now", null).request_id);
  });

  it("sends no settings where a run goes on", () => {
    const form = new TrainingForm(DRAFT);
    form.set("train.seed", 3);
    const job = form.job("now", "run-1");
    expect(job.resume).toBe("run-1");
    expect(job).not.toHaveProperty("values");
    expect(job).not.toHaveProperty("yaml");
  });
});

describe("draft", () => {
  it("survives a reload without secrets, and goes once the training has begun", async () => {
    const form = new TrainingForm(DRAFT);
    form.name = "mine";
    form.type("seed: 3\nhub_token: hf_secret\n");
    await vi.advanceTimersByTimeAsync(1000);
    expect(localStorage.getItem(DRAFT)).not.toContain("hf_secret");
    const later = new TrainingForm(DRAFT);
    expect(later.restore()).toBe(true);
    expect(later.name).toBe("mine");
    expect(later.text).toContain("seed: 3");
    form.started();
    expect(new TrainingForm(DRAFT).restore()).toBe(false);
  });

  it("is kept when the page goes away at once, but not after a start", () => {
    const form = new TrainingForm(DRAFT);
    form.set("train.seed", 3);
    form.close();
    expect(new TrainingForm(DRAFT).restore()).toBe(true);
    form.set("train.seed", 4);
    form.started();
    form.close();
    expect(new TrainingForm(DRAFT).restore()).toBe(false);
  });

  it("is no draft where the store holds something else", () => {
    localStorage.setItem(DRAFT, "{broken");
    expect(new TrainingForm(DRAFT).restore()).toBe(false);
  });
});
