// What a browser saw: node page.mjs ORIGIN TOKEN look FOLDER | watch RUN. Prints seconds as JSON; `watch` stays until it is ended.
import { createRequire } from "node:module";

const { chromium } = createRequire(
  new URL("../web/package.json", import.meta.url),
)("@playwright/test");
const [origin, token, what, named] = process.argv.slice(2);
const flags = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
];
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [...flags, "--disable-component-update", "--disable-sync"],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });

/** Seconds from asking for an address until `there` is drawn and a click is answered. */
async function opened(path, there) {
  const began = performance.now();
  await page.goto(`${origin}${path}`);
  // Looked for at each frame: a locator looks every half second in the end.
  await page.waitForFunction(
    (place) => document.querySelector(place)?.getBoundingClientRect().width,
    there,
  );
  await page.evaluate(
    () => new Promise((done) => requestAnimationFrame(() => setTimeout(done))),
  );
  return Math.round(performance.now() - began) / 1000;
}

if (what === "watch") {
  await page.goto(`${origin}/run/${named}#token=${token}`);
  await new Promise(() => {});
}
const found = {};
// Of a server that has just begun, and that knows nothing of this run yet.
found.million_points_first_s = await opened(
  `/run/million#token=${token}`,
  '[data-testid="chart-loss"] canvas',
);
await page.goto(`${origin}/start`);
found.first_paint_s = await page.evaluate(
  () =>
    new Promise((done) => {
      const at = () =>
        performance.getEntriesByName("first-contentful-paint")[0]?.startTime;
      const look = () =>
        at() === undefined
          ? setTimeout(look, 10)
          : done(Math.round(at()) / 1000);
      look();
    }),
);
found.million_points_s = await opened(
  "/run/million",
  '[data-testid="chart-loss"] canvas',
);
const rows = new URLSearchParams({
  dataset: "large.jsonl",
  folder: named,
  tab: "rows",
}).toString();
found.data_set_first_s = await opened(`/data?${rows}`, '[data-testid^="row-"]');
found.data_set_s = await opened(`/data?${rows}`, '[data-testid^="row-"]');
console.log(JSON.stringify(found));
await browser.close();
