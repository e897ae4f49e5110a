import { cleanup, fireEvent, render, screen, waitFor } from "@testing-library/svelte";
import { createRawSnippet } from "svelte";
import { afterEach, describe, expect, it, vi } from "vitest";
import type { NewJob } from "../lib/api/shapes";
import { kept } from "../lib/kept.svelte";
import JobForm from "./JobForm.svelte";

afterEach(() => {
  cleanup();
  vi.unstubAllGlobals();
});

const text = (words: string) => createRawSnippet(() => ({ render: () => `<p>${words}</p>` }));
const button = () => screen.getByTestId<HTMLButtonElement>("go");
const submit = () => fireEvent.submit(button().closest("form")!);

describe("a form that starts a job", () => {
  const show = (reply: () => Response) => {
    const asked: NewJob[] = [];
    vi.stubGlobal("fetch", async (path: string, { body }: RequestInit) => {
      expect(path).toBe("/api/jobs");
      asked.push(JSON.parse(String(body)) as NewJob);
      return reply();
    });
    const started = vi.fn();
    const form = { name: "a" };
    const job = () => ({ kind: "export" as const, name: form.name, when: "queue" as const });
    const snippets = { children: text("what"), beside: text("where") };
    const { rerender } = render(JobForm, { job, ready: true, start: "Go", testid: "go", started, ...snippets });
    return { asked, started, form, rerender };
  };

  it("starts one job by a double click, and another where the form says something else", async () => {
    const { asked, started, form } = show(() => new Response('{"id": "j1"}'));
    await submit();
    await submit();
    await waitFor(() => expect(started.mock.calls).toEqual([["j1"], ["j1"]]));
    form.name = "b";
    await submit();
    await waitFor(() => expect(started).toHaveBeenCalledTimes(3));
    expect(asked.map(({ kind, name, when }) => [kind, name, when])).toEqual([
      ["export", "a", "queue"],
      ["export", "a", "queue"],
      ["export", "b", "queue"],
    ]);
    const [first, again, other] = asked.map((each) => each.request_id);
    expect(again).toBe(first);
    expect(other).not.toBe(first);
  });

  it("says what was refused, and may be tried again as the same job", async () => {
    const error = { code: "disk_full", message: "5 bytes free", field: null, place: null };
    let reply = () => new Response(JSON.stringify({ error, problems: [error] }), { status: 507 });
    const { asked, started } = show(() => reply());
    await submit();
    await waitFor(() => expect(screen.getByTestId("problems").textContent).toContain("5 bytes free"));
    expect([button().disabled, started.mock.calls]).toEqual([false, []]);
    reply = () => new Response('{"id": "j2"}');
    await submit();
    await waitFor(() => expect(started).toHaveBeenCalledWith("j2"));
    expect(screen.queryByTestId("problems")).toBeNull();
    expect(asked[1]?.request_id).toBe(asked[0]?.request_id);
  });

  it("waits until it is complete", async () => {
    const { rerender } = show(() => new Response("{}"));
    await rerender({ ready: false });
    expect(button().disabled).toBe(true);
  });
});

describe("what a form remembers", () => {
  it("lies over a fresh form, and what is damaged is nothing", () => {
    const fresh = { format: "merged", verify: true };
    localStorage.setItem("f", '{"verify": false}');
    expect(kept("f", fresh)).toEqual({ format: "merged", verify: false });
    for (const damaged of ["{cut", "null"]) {
      localStorage.setItem("f", damaged);
      expect(kept("f", fresh)).toEqual(fresh);
    }
  });
});
