import { cleanup, render, screen, waitFor } from "@testing-library/svelte";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { RunDetail } from "../../lib/api/shapes";
import { language } from "../../lib/words.svelte";
import Actions from "./Actions.svelte";
import Header from "./Header.svelte";
import { BEAT, LiveRun } from "./live.svelte";
import { lookOf, zoomText } from "./look";
import { plan } from "./metrics";

const detail = (more: Partial<RunDetail> = {}): RunDetail =>
  ({
    id: "a",
    name: "tickets",
    state: "running",
    objective: "sft",
    tuning: "lora",
    model: "m",
    data: [],
    step: 100,
    total: 200,
    loss: 0.5,
    best: null,
    best_metric: null,
    seconds: 60,
    bytes: 1,
    created: 0,
    updated: 1,
    status: { train_loss: 9.9 },
    config: {},
    yaml: "",
    command: "",
    job: null,
    checkpoints: [],
    metrics: ["loss"],
    diagnosis: [],
    resumable: false,
    samples: 0,
    evaluations: 0,
    exports: [],
    ...more,
  }) as RunDetail;

let found = detail();
let asked: { method: string; path: string; body: unknown }[] = [];
const curves = { run: "a", last_seq: 5, marks: [], curves: [{ name: "loss", x: [99, 100], y: [0.6, 0.5], points: 2 }] };

class Silent {
  static readonly CLOSED = 2;
  addEventListener(): void {}
  close(): void {}
}

beforeEach(() => {
  language.choose("en");
  found = detail();
  asked = [];
  vi.stubGlobal("EventSource", Silent);
  vi.stubGlobal("fetch", async (path: string, options: RequestInit) => {
    asked.push({ method: options.method ?? "GET", path, body: options.body ? JSON.parse(String(options.body)) : null });
    const seconds = path.includes("names=seconds");
    const body = path.includes("/curves")
      ? { ...curves, curves: seconds ? [{ name: "seconds", x: [99, 100], y: [1, 2], points: 2 }] : curves.curves }
      : found;
    return new Response(JSON.stringify(body));
  });
});
afterEach(() => {
  vi.useRealTimers();
  cleanup();
  vi.unstubAllGlobals();
});

/** A run whose curves have come. */
async function listening(): Promise<LiveRun> {
  const run = new LiveRun("a", "step", (names) => names);
  run.listen();
  await waitFor(() => expect(run.curves).not.toBeNull());
  return run;
}
/** By the next beat. */
const soon = (holds: () => void) => waitFor(holds, { timeout: 2 * BEAT });
const train = (seq: number, step: number, loss: number | null) => ({
  seq,
  step,
  loss,
  time: "",
  kind: "train",
  ...(loss === null && { nonfinite: true }),
});
const figure = (id: string) => screen.getByTestId(`figure-${id}`).textContent;

describe("what the page says of a run", () => {
  it("is the loss of the last step, not the mean that stands in the status", async () => {
    const run = await listening();
    render(Header, { run, detail: found, silent: 0 });
    expect(figure("loss")).toBe("0.5");
    run.take(train(6, 101, 0.25));
    await soon(() => expect(figure("loss")).toBe("0.25"));
  });

  it("is that the loss is no number after a step whose loss was none", async () => {
    const run = await listening();
    render(Header, { run, detail: found, silent: 0 });
    run.take(train(6, 101, null));
    await soon(() => expect(figure("loss")).toBe("not a number"));
  });

  it("is no number after a reload, too", async () => {
    found = detail({ loss: null, metrics: [] });
    const run = new LiveRun("a", "step", (names) => names);
    await run.refresh();
    render(Header, { run, detail: found, silent: 0 });
    expect(figure("loss")).toBe("not a number");
  });

  it("is asked for what its job does before the first step, which no stream tells", async () => {
    vi.useFakeTimers();
    const looks = () => asked.filter(({ path }) => path === "/api/runs/a").length;
    for (const [more, early, later] of [
      [{ state: "starting", step: 0, job: "j" }, 1, 3],
      [{}, 0, 1],
    ] as const) {
      found = detail(more);
      const run = new LiveRun("a", "step", (names) => names);
      const end = run.listen();
      await vi.advanceTimersByTimeAsync(100);
      run.connection = "open";
      asked = [];
      await vi.advanceTimersByTimeAsync(6500);
      expect(looks()).toBe(early);
      await vi.advanceTimersByTimeAsync(10_000);
      expect(looks(), "what nobody tells, such as that its folder is gone").toBe(later);
      end();
    }
  });

  it("was heard when something came, not when it is shown", async () => {
    const run = await listening();
    run.take(train(6, 101, 0.4));
    await soon(() => expect(run.step).toBe(101));
    run.take(train(7, 102, 0.4));
    const heard = Date.now();
    await soon(() => expect(run.step).toBe(102));
    expect(run.heardAt).toBeLessThanOrEqual(heard);
  });

  it("never goes back by an old message, and counts no event twice", async () => {
    const run = await listening();
    run.take(train(6, 101, 0.4));
    run.take(train(7, 102, 0.3));
    run.take(train(6, 101, 0.4));
    await run.refresh();
    await soon(() => expect(run.step).toBe(102));
    expect(run.curves?.lines.get("loss")?.x).toEqual([99, 100, 101, 102]);
  });

  it("is that it saves, where the last step is done and the process is still there", async () => {
    found = detail({ step: 200 });
    const run = await listening();
    render(Header, { run, detail: found, silent: 0 });
    expect(screen.getByTestId("finishing")).toBeTruthy();
    expect(screen.getByTestId("state").dataset["state"]).toBe("running");
  });

  it("is how long it takes by the median of its steps", async () => {
    const run = await listening();
    expect(run.secondsLeft).toBe(150);
    found = detail({ state: "done" });
    await run.refresh();
    expect(run.secondsLeft).toBeNull();
  });
});

describe("what may be done", () => {
  const show = (more: Partial<RunDetail>) => {
    found = detail(more);
    render(Actions, { run: new LiveRun("a", "step", () => []), detail: found });
  };

  it("says the true blocker of a resume", () => {
    show({ state: "failed", resumable: false, blocker: "the data file /x.json has changed" });
    expect(screen.getByTestId<HTMLButtonElement>("resume").disabled).toBe(true);
    expect(screen.getByTestId("blocker").textContent).toContain("the data file /x.json has changed");
  });

  it("resumes once, however often it is pressed", async () => {
    show({ state: "crashed", resumable: true });
    const button = screen.getByTestId("resume");
    button.click();
    button.click();
    await waitFor(() => expect(asked.some(({ method }) => method === "POST")).toBe(true));
    const posts = asked.filter(({ method }) => method === "POST");
    expect(posts).toHaveLength(1);
    expect(posts[0]?.body).toMatchObject({ action: "resume", request_id: expect.stringMatching(/^[\w-]{8,64}$/) });
  });

  it("is to stop with a checkpoint while it trains, and to delete only when it does not", () => {
    show({ state: "running" });
    expect(screen.queryByTestId("delete")).toBeNull();
    screen.getByTestId("stop").click();
    expect(asked.at(-1)?.body).toEqual({ action: "stop" });
  });
});

describe("charts", () => {
  it("hold every metric once", () => {
    const names = [
      "loss",
      "eval_loss",
      "reward",
      "reward/failed",
      "reward/format",
      "grad_norm",
      "epoch",
      "odd",
      "seconds",
    ];
    const { main, more } = plan(names);
    expect(main.map(({ id }) => id)).toEqual(["loss", "reward", "rewards", "cut", "norm"]);
    expect(more.map(({ id }) => id)).toEqual(["odd", "seconds"]);
    const all = [...main, ...more].flatMap(({ metrics }) => metrics);
    expect(all.sort()).toEqual(names.filter((name) => name !== "epoch").sort());
  });

  it("stand in the address as they are looked at", () => {
    const look = lookOf(new URLSearchParams("x=tokens&smooth=0.6&log=1&zoom=-5~1e3"), ["step", "tokens"]);
    expect(look).toEqual({ axis: "tokens", smoothing: 0.6, log: true, zoom: [-5, 1000] });
    expect(zoomText(look.zoom)).toBe("-5~1000");
    const none = { axis: "step", smoothing: 0, log: false, zoom: null };
    expect(lookOf(new URLSearchParams("x=odd&smooth=7&zoom=9~2"), ["step"])).toEqual(none);
    expect(lookOf(new URLSearchParams(), ["step"])).toEqual(none);
  });
});
