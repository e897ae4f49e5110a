import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { follow, type Connection, type Hearing } from "./events";

class Source {
  static readonly CLOSED = 2;
  static all: Source[] = [];
  readyState = 1;
  onopen?: () => void;
  onmessage?: (message: { data: string }) => void;
  onerror?: () => void;
  closed = false;
  readonly heard = new Map<string, (message: { data: string }) => void>();
  constructor(readonly url: string) {
    Source.all.push(this);
  }
  addEventListener(kind: string, listener: (message: { data: string }) => void): void {
    this.heard.set(kind, listener);
  }
  close(): void {
    this.closed = true;
  }
  break(state: number): void {
    this.readyState = state;
    this.onerror?.();
  }
}

const settle = () => vi.advanceTimersByTimeAsync(0);
const last = () => Source.all.at(-1)!;
let hidden = false;

function hearing(more: Partial<Hearing> = {}) {
  const states: Connection[] = [];
  const seen: number[] = [];
  const given = {
    begin: vi.fn(async (): Promise<number | "over" | null> => 7),
    event: ({ seq }: { seq: number }) => void seen.push(seq),
    status: vi.fn(),
    ended: vi.fn(async () => false),
    connection: (state: Connection) => void states.push(state),
    ...more,
  };
  return { given, states, seen };
}

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("EventSource", Source);
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  Source.all = [];
  hidden = false;
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

describe("stream of a run", () => {
  it("begins where the curves end", async () => {
    const { given, seen, states } = hearing();
    const stream = follow("my run", given);
    await settle();
    expect(last().url).toBe("/api/runs/my%20run/events?after=7");
    last().onopen?.();
    last().onmessage?.({ data: '{"seq":8,"kind":"train","time":""}' });
    last().heard.get("status")?.({ data: '{"state":"running"}' });
    expect(seen).toEqual([8]);
    expect(given.status).toHaveBeenCalledWith({ state: "running" });
    expect(states).toEqual(["connecting", "open"]);
    stream.close();
    expect(last().closed).toBe(true);
  });

  it("leaves short faults to the browser", async () => {
    const { given, states } = hearing();
    const stream = follow("a", given);
    await settle();
    last().break(0);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(Source.all).toHaveLength(1);
    expect(states.at(-1)).toBe("lost");
    stream.close();
  });

  it("ends where the run has ended, and asks again where it has not", async () => {
    const ended = vi.fn(async () => ended.mock.calls.length > 1);
    const { given, states } = hearing({ ended });
    const stream = follow("a", given);
    await settle();
    last().break(Source.CLOSED);
    await settle();
    expect(states.at(-1)).toBe("lost");
    await vi.advanceTimersByTimeAsync(1000);
    expect(Source.all).toHaveLength(2);
    last().break(Source.CLOSED);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(states.at(-1)).toBe("ended");
    expect(Source.all).toHaveLength(2);
    stream.close();
  });

  it("waits longer each time that the server is not there", async () => {
    const begin = vi.fn(async () => null);
    const { given } = hearing({ begin });
    const stream = follow("a", given);
    await settle();
    await vi.advanceTimersByTimeAsync(1000);
    expect(begin).toHaveBeenCalledTimes(2);
    await vi.advanceTimersByTimeAsync(1999);
    expect(begin).toHaveBeenCalledTimes(2);
    await vi.advanceTimersByTimeAsync(1);
    expect(begin).toHaveBeenCalledTimes(3);
    await vi.advanceTimersByTimeAsync(4000 + 8000 + 15_000 + 15_000);
    expect(begin).toHaveBeenCalledTimes(7);
    stream.close();
  });

  it("has no connection while the tab is hidden, and begins anew when it is seen", async () => {
    const { given, states } = hearing();
    const stream = follow("a", given);
    await settle();
    hidden = true;
    document.dispatchEvent(new Event("visibilitychange"));
    expect(last().closed).toBe(true);
    expect(states.at(-1)).toBe("asleep");
    hidden = false;
    document.dispatchEvent(new Event("visibilitychange"));
    await settle();
    expect(Source.all).toHaveLength(2);
    expect(given.begin).toHaveBeenCalledTimes(2);
    stream.close();
  });

  it("stops for good where there is no such run, and opens nothing after it was closed", async () => {
    const over = hearing({ begin: async () => "over" });
    const first = follow("a", over.given);
    await settle();
    expect([Source.all.length, over.states.at(-1)]).toEqual([0, "ended"]);
    first.close();
    const late = hearing();
    follow("a", late.given).close();
    await settle();
    expect(Source.all).toHaveLength(0);
  });
});
