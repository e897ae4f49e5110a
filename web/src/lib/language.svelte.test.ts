import { flushSync } from "svelte";
import { afterEach, expect, test, vi } from "vitest";
import { get, post } from "./api/client";
import { Resource } from "./resource.svelte";
import { language } from "./words.svelte";

const asked: Headers[] = [];

afterEach(() => {
  language.choose("en");
  asked.length = 0;
  vi.unstubAllGlobals();
});

function answering(): void {
  vi.stubGlobal("fetch", (_: string, how: RequestInit) => {
    asked.push(new Headers(how.headers));
    return Promise.resolve(new Response("{}"));
  });
}

const languages = (): (string | null)[] => asked.map((each) => each.get("Accept-Language"));

test("every request names the language of the page", async () => {
  answering();
  language.choose("en");
  await get("/runs");
  language.choose("zh");
  await post("/jobs", {});
  expect(languages()).toEqual(["en", "zh-CN"]);
  expect(asked.map((each) => each.get("X-Luthier"))).toEqual([null, "1"]);
});

test("what is shown is asked for again when another language is chosen", () => {
  answering();
  language.choose("en");
  const shown = new Resource((signal) => get("/doctor", {}, signal));
  const stop = $effect.root(() => {
    $effect(() => void shown.load());
  });
  flushSync();
  language.choose("zh");
  flushSync();
  language.choose("zh");
  flushSync();
  stop();
  expect(languages()).toEqual(["en", "zh-CN"]);
});
