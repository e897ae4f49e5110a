import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { RequestIds } from "./request";

describe("ids of requests", () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  it("are the same for a double click and for a second try, and others for another form", () => {
    const ids = new RequestIds();
    const first = ids.of({ a: 1 });
    expect(ids.of({ a: 1 })).toBe(first);
    ids.taken();
    vi.advanceTimersByTime(500);
    expect(ids.of({ a: 1 })).toBe(first);
    expect(ids.of({ a: 2 })).not.toBe(first);
  });

  it("are new for the same form later on", () => {
    const ids = new RequestIds();
    const first = ids.of({ a: 1 });
    ids.taken();
    vi.advanceTimersByTime(5000);
    expect(ids.of({ a: 1 })).not.toBe(first);
  });
});
