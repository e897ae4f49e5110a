import { beforeEach, describe, expect, it, vi } from "vitest";

const system = Object.assign(new EventTarget(), { matches: false });
const shown = () => document.documentElement.dataset["theme"];

function turn(dark: boolean): void {
  system.matches = dark;
  system.dispatchEvent(new Event("change"));
}

beforeEach(() => {
  vi.resetModules();
  localStorage.clear();
  vi.stubGlobal("matchMedia", () => system);
  turn(false);
});

describe("the theme", () => {
  it("is the system's, and follows it, until one is chosen", async () => {
    const { theme } = await import("./theme.svelte");
    expect([theme.now, shown()]).toEqual(["system", "light"]);
    turn(true);
    expect(shown()).toBe("dark");
    theme.choose("light");
    expect([shown(), localStorage.getItem("theme")]).toEqual(["light", "light"]);
    turn(false);
    turn(true);
    expect(shown()).toBe("light");
    theme.choose("system");
    expect(shown()).toBe("dark");
  });

  it.each([
    ["dark", "dark"],
    ["odd", "light"],
  ])("is as it was kept, where that is one: %s", async (kept, expected) => {
    localStorage.setItem("theme", kept);
    await import("./theme.svelte");
    expect(shown()).toBe(expected);
  });
});
