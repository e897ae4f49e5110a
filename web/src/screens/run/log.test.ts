import { cleanup, render, screen, waitFor } from "@testing-library/svelte";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import Log from "./Log.svelte";

const written = Array.from({ length: 6 }, (_, i) => `line ${i}`);
let known = 2;

beforeEach(() => {
  known = 2;
  Object.defineProperty(HTMLElement.prototype, "clientHeight", { configurable: true, get: () => 400 });
  vi.stubGlobal(
    "ResizeObserver",
    class {
      observe(): void {}
      unobserve(): void {}
      disconnect(): void {}
    },
  );
  vi.stubGlobal("fetch", async (path: string) => {
    const after = Number(new URL(path, "http://x").searchParams.get("after") ?? 0);
    const lines = written.slice(after, known);
    await new Promise((done) => setTimeout(done, 30));
    return new Response(JSON.stringify({ lines, begin: after, offset: known }));
  });
});
afterEach(() => {
  cleanup();
  vi.unstubAllGlobals();
});

const shown = () => screen.getAllByRole("listitem").map((each) => each.textContent);

it("shows each line once, though the end of the run asks while the clock does", async () => {
  const { rerender } = render(Log, { path: "/runs/a", live: true });
  await waitFor(() => expect(shown()).toEqual(["line 0", "line 1"]));
  known = 6;
  await rerender({ live: false });
  await rerender({ live: true });
  await rerender({ live: false });
  await waitFor(() => expect(shown()).toHaveLength(6));
  await new Promise((done) => setTimeout(done, 150));
  expect(shown()).toEqual(written);
});
