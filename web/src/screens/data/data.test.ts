import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { addressOf } from "./address";
import { brief, whole } from "./brief";
import { cutAt, lengthOf } from "./lengths";
import { FoundRows } from "./found.svelte";
import { RowPages } from "./pages.svelte";
import { entryOf, questionOf } from "./roles";

describe("rows as text", () => {
  it("are short however long their values are", () => {
    const huge = "x".repeat(5_000_000);
    expect(brief({ instruction: "two\nlines", output: huge }).length).toBeLessThan(401);
    expect(brief({ instruction: "two\nlines" })).toBe("instruction: two ⏎ lines");
    expect(brief({ messages: [{ role: "user", content: "Hi" }] })).toBe("messages: user Hi");
  });

  it("say how much is left out", () => {
    expect(whole({ a: "x".repeat(30), b: [1] }, 20)).toEqual([
      { name: "a", text: "x".repeat(20), left: 10 },
      { name: "b", text: "[\n  1\n]", left: 0 },
    ]);
  });
});

describe("a cut", () => {
  const exact = [
    [1, 0],
    [2, 3],
    [3, 0],
    [4, 2],
  ];
  it("takes what is behind it", () => {
    expect(cutAt(exact, 4)).toEqual({ rows: 0, tokens: 0, about: false });
    expect(cutAt(exact, 2)).toEqual({ rows: 2, tokens: 4, about: false });
    expect(cutAt(exact, 1)).toEqual({ rows: 5, tokens: 3 * 1 + 2 * 3, about: false });
  });
  it("is estimated inside wide bins", () => {
    const found = cutAt(
      [
        [100, 10],
        [200, 10],
      ],
      150,
    );
    expect(found).toMatchObject({ rows: 5, about: true });
    expect(found.tokens).toBeCloseTo(5 * 25.5, -1);
  });
  it("can be chosen by the share of rows that stay whole", () => {
    expect(lengthOf(exact, 0.6)).toBe(2);
    expect(lengthOf(exact, 1)).toBe(4);
  });
});

describe("a mapping", () => {
  it("becomes an entry that keeps what it does not know", () => {
    expect(
      entryOf({ file_name: "a.jsonl", ranking: true, columns: { old: "x" } }, "alpaca", { prompt: "q", query: "" }),
    ).toEqual({
      file_name: "a.jsonl",
      ranking: true,
      formatting: "alpaca",
      columns: { prompt: "q" },
    });
  });
  it("tells the question of a row", () => {
    expect(questionOf({ instruction: "Add", input: "1 2", output: "3" }, "alpaca", {})).toBe("Add\n1 2");
    expect(questionOf({ q: "Why?" }, "alpaca", { prompt: "q" })).toBe("Why?");
    const turns = [
      { from: "system", value: "s" },
      { from: "human", value: "Hello" },
    ];
    expect(questionOf({ conversations: turns }, "sharegpt", {})).toBe("Hello");
    expect(questionOf("broken", "auto", {})).toBe("");
  });
  it("has an address that brings odd names back", () => {
    const address = new URL(addressOf({ dataset: "a b/ü?.jsonl", folder: "/d & e" }, { row: "3" }), "http://x");
    expect(address.searchParams.get("dataset")).toBe("a b/ü?.jsonl");
    expect(address.searchParams.get("folder")).toBe("/d & e");
    expect(address.searchParams.get("row")).toBe("3");
  });
});

describe("pages of rows", () => {
  const ROWS = 100_000;
  const asked: string[] = [];

  beforeEach(() => {
    asked.length = 0;
    vi.stubGlobal("fetch", (address: string) => {
      const query = new URL(address, "http://x").searchParams;
      const start = Number(query.get("start"));
      const count = Math.min(Number(query.get("count")), ROWS - start);
      asked.push(`${start}+${query.get("count")}`);
      const places = Array.from({ length: count }, (_, i) => start + i);
      const page = {
        start,
        rows: places.map((n) => ({ n })),
        lines: places.map((n) => 2 * n + 1),
        total: ROWS,
        columns: [],
      };
      return Promise.resolve(new Response(JSON.stringify(page)));
    });
  });
  afterEach(() => vi.unstubAllGlobals());

  it("are fetched once, where they are seen", async () => {
    const pages = new RowPages({ dataset: "a", folder: "f" });
    pages.want(0, 30);
    await vi.waitFor(() => expect(pages.row(29)?.value).toEqual({ n: 29 }));
    pages.want(50_090, 50_130);
    pages.want(50_091, 50_131);
    await vi.waitFor(() => expect(pages.row(50_130)?.line).toBe(100_261));
    expect(asked).toEqual(["0+100", "50000+100", "50100+100"]);
    expect(pages.total).toBe(ROWS);
    expect(pages.row(70_000)).toBeUndefined();
  });

  it("that a search finds are told apart from those around them, as far as they are looked at", async () => {
    const found = new FoundRows({ dataset: "a", folder: "f" }, "x");
    vi.stubGlobal("fetch", (address: string) => {
      const start = Number(new URL(address, "http://x").searchParams.get("start"));
      asked.push(String(start));
      // One hit in a thousand rows; the server stops after 50,000 of them.
      const places = Array.from({ length: 50 }, (_, i) => start + i * 1000 + 7);
      const rest = { rows: places.map((n) => ({ n })), lines: places.map((n) => n + 1), total: ROWS, columns: [] };
      const page = { start, ...rest, places, broken: [1], problems: ["cut"], stopped: start ? null : 50_000 };
      return Promise.resolve(new Response(JSON.stringify(page)));
    });
    found.want(0, 20);
    await vi.waitFor(() => expect(found.counting).toBe(false));
    expect(asked).toEqual(["0", "50000"]);
    expect(found.total).toBe(100);
    expect(found.row(51)).toEqual({ place: 51_007, line: 51_008, value: { n: 51_007 }, broken: "cut" });
    expect(found.at(51_007)?.line).toBe(51_008);
    expect(found.indexOf(99_007)).toBe(99);
    expect(found.at(5)).toBeUndefined();
  });

  it("are fetched again where more of them are known by now", async () => {
    let known = 2;
    vi.stubGlobal("fetch", (address: string) => {
      const count = Math.min(Number(new URL(address, "http://x").searchParams.get("count")), known);
      asked.push(`${known}`);
      const places = Array.from({ length: count }, (_, n) => n);
      const total = known === 2 ? null : known;
      const page = { start: 0, rows: places, lines: places.map((n) => n + 1), total, columns: [] };
      return Promise.resolve(new Response(JSON.stringify(page)));
    });
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const pages = new RowPages({ dataset: "a", folder: "f" });
    pages.want(0, 30);
    await vi.advanceTimersByTimeAsync(10);
    expect([pages.total, pages.counting, pages.row(2)]).toEqual([2, true, undefined]);
    known = 5;
    await vi.advanceTimersByTimeAsync(2000);
    vi.useRealTimers();
    await vi.waitFor(() => expect(pages.row(4)?.line).toBe(5));
    expect([pages.total, pages.counting]).toEqual([5, false]);
    expect(asked).toEqual(["2", "5", "5"]);
  });

  it("find the row of a line with few questions", async () => {
    const pages = new RowPages({ dataset: "a", folder: "f" });
    pages.want(0, 1);
    await vi.waitFor(() => expect(pages.total).toBe(ROWS));
    expect(await pages.find(154_321)).toBe(77_160);
    expect(await pages.find(4)).toBe(1);
    expect(asked.length).toBeLessThan(45);
  });
});
