/** Every screen in both languages, both themes and two widths: no serious fault for axe, nothing sticks out, a picture. */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import type { Page } from "@playwright/test";
import { expect, open, settled, test } from "./page";
import { furnish, type Furniture } from "./furniture";

const PICTURES = process.env["PICTURES"] && resolve(import.meta.dirname, "../..", process.env["PICTURES"]);
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf-8");
const LANGUAGES = ["en", "zh"] as const;
const THEMES = ["light", "dark"] as const;
const WIDTHS = [1280, 390] as const;

let there: Furniture;
test.beforeAll(async ({ server }) => {
  there = await furnish(server);
});

const SCREENS: Record<string, () => string> = {
  start: () => "/start",
  runs: () => "/runs",
  run: () => `/run/${there.run}`,
  compare: () => `/compare?runs=${there.run},${there.other}`,
  data: () => "/data",
  rows: () => `/data?dataset=${there.dataset}&folder=${encodeURIComponent(there.folder)}`,
  tokens: () => `${SCREENS["rows"]!()}&tab=tokens`,
  evaluate: () => `/evaluate?run=${there.run}`,
  chat: () => `/chat?run=${there.run}`,
  export: () => `/export?run=${there.run}`,
  queue: () => "/queue",
  settings: () => "/settings",
};

interface Finding {
  id: string;
  impact: string | null;
  nodes: { html: string; failureSummary: string }[];
}

async function faultsOf(page: Page): Promise<string[]> {
  // Playwright evaluates past the page's policy; a script tag would not be let in.
  await page.evaluate(AXE);
  const found = await page.evaluate(async () => {
    const axe = (window as unknown as { axe: { run: (what: Document) => Promise<{ violations: Finding[] }> } }).axe;
    return (await axe.run(document)).violations;
  });
  return found
    .filter((each) => each.impact === "serious" || each.impact === "critical")
    .map((each) => `${each.id}: ${each.nodes.map((node) => node.html.slice(0, 160)).join(" | ")}`);
}

for (const [name, address] of Object.entries(SCREENS)) {
  for (const language of LANGUAGES) {
    test(`${name} in ${language}`, async ({ page, server }) => {
      await page.addInitScript((chosen) => location.host && localStorage.setItem("language", chosen), language);
      for (const theme of THEMES) {
        for (const width of WIDTHS) {
          await page.emulateMedia({ colorScheme: theme, reducedMotion: "reduce" });
          await page.setViewportSize({ width, height: 900 });
          await page.goto("about:blank");
          await settled(page, () => open(page, server, address()));
          const where = `${name} ${language} ${theme} ${width}`;
          const sideways = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
          expect.soft(sideways, `${where} scrolls sideways`).toBeLessThanOrEqual(0);
          expect.soft(await faultsOf(page), where).toEqual([]);
          const raw = await page.locator("body").innerText();
          expect
            .soft(raw.match(/\b(common|start|run|runs|data|chat|queue|settings|export|evaluate)\.[a-z]\w+/g), where)
            .toBeNull();
          if (PICTURES) await page.screenshot({ path: join(PICTURES, `${where.replaceAll(" ", "-")}.png`) });
        }
      }
    });
  }
}
