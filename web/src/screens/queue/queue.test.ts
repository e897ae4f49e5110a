import { afterEach, describe, expect, it, vi } from "vitest";
import type { Job } from "../../lib/api/shapes";
import { moved, Queue } from "./queue.svelte";

const job = (id: string, state: Job["state"]): Job => ({ id, state, kind: "train", name: id, created: 1, command: "" });

afterEach(() => vi.unstubAllGlobals());

function server(jobs: Job[], refuse = false): { method: string; path: string; body: unknown }[] {
  const asked: { method: string; path: string; body: unknown }[] = [];
  vi.stubGlobal("fetch", async (path: string, options: { method: string; body?: string }) => {
    asked.push({ method: options.method, path, body: options.body ? JSON.parse(options.body) : null });
    if (refuse && options.method !== "GET") {
      return new Response(JSON.stringify({ error: { code: "job_state", message: "it is done" } }), { status: 409 });
    }
    return new Response(JSON.stringify({ jobs, slots: 1, holding: false }), { status: 200 });
  });
  return asked;
}

describe("order", () => {
  it.each([
    [0, 2, ["b", "c", "a"]],
    [2, 0, ["c", "a", "b"]],
    [1, 1, ["a", "b", "c"]],
    [9, 0, ["a", "b", "c"]],
  ])("moves %i to %i", (from, to, wanted) => {
    expect(moved(["a", "b", "c"], from, to)).toEqual(wanted);
  });

  it("tells waiting, running and ended jobs apart", async () => {
    server([job("a", "queued"), job("b", "held"), job("c", "stopping"), job("d", "crashed")]);
    const queue = new Queue();
    await queue.load();
    expect(queue.waiting.map((each) => each.id)).toEqual(["a", "b"]);
    expect(queue.running.map((each) => each.id)).toEqual(["c"]);
    expect(queue.ended.map((each) => each.id)).toEqual(["d"]);
  });

  it("asks for the whole new order", async () => {
    const asked = server([job("a", "queued"), job("b", "queued"), job("c", "queued")]);
    const queue = new Queue();
    await queue.load();
    expect(await queue.move(2, 0)).toBe(true);
    expect(asked.find((each) => each.method === "PATCH")).toEqual({
      method: "PATCH",
      path: "/api/queue",
      body: { order: ["c", "a", "b"] },
    });
  });

  it("says what was refused, and shows the order of the server again", async () => {
    server([job("a", "queued"), job("b", "queued")], true);
    const queue = new Queue();
    await queue.load();
    expect(await queue.move(1, 0)).toBe(false);
    expect(queue.refused[0]?.message).toBe("it is done");
    expect(queue.waiting.map((each) => each.id)).toEqual(["a", "b"]);
  });
});
