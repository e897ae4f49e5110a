/** What every test of the page holds: nothing from elsewhere, no error in the console, a session. */
import { readFileSync } from "node:fs";
import { expect, type Page, type Request, test as base } from "@playwright/test";
import { Server } from "./server";

export { expect } from "@playwright/test";

/** Faults that a page may have; a test that wants one of them takes it out. */
export class Watch {
  readonly faults: string[] = [];
  expected: RegExp[] = [];

  constructor(page: Page, origin: () => string) {
    page.on("console", (message) => {
      // Replies are noted below, with their addresses.
      if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) {
        this.#note(`console: ${message.text()}`);
      }
    });
    page.on("response", (reply) => reply.status() >= 400 && this.#note(`${reply.status()} ${reply.url()}`));
    page.on("pageerror", (error) => this.#note(`page: ${error.message}`));
    page.on("request", (request) => {
      const url = request.url();
      if (!url.startsWith(origin()) && !url.startsWith("blob:")) this.#note(`asked elsewhere: ${url}`);
    });
  }

  #note(fault: string): void {
    this.faults.push(fault);
  }

  get unexpected(): string[] {
    return this.faults.filter((fault) => !this.expected.some((each) => each.test(fault)));
  }
}

export const test = base.extend<{ watch: Watch }, { server: Server }>({
  server: [
    async ({}, use) => {
      const server = await new Server().start();
      await use(server);
      await server.close();
    },
    { scope: "worker" },
  ],
  watch: [
    async ({ page, server }, use) => {
      const watch = new Watch(page, () => server.origin);
      await use(watch);
      expect(watch.unexpected).toEqual([]);
    },
    { auto: true },
  ],
});

/** Requests that a page waits for; streams last as long as it is open. */
const STREAM = /\/api\/(changes|runs\/[^/]+\/events)/;

/** Wait until everything that was asked for is there, and nothing has been asked for since. */
export async function settled(page: Page, doing: () => Promise<unknown>): Promise<void> {
  const waiting = new Set<Request>();
  let last = Date.now();
  const begun = (request: Request) => {
    if (!STREAM.test(request.url())) waiting.add(request);
    last = Date.now();
  };
  const ended = (request: Request) => {
    waiting.delete(request);
    last = Date.now();
  };
  page.on("request", begun).on("requestfinished", ended).on("requestfailed", ended);
  await doing();
  await expect.poll(() => waiting.size === 0 && Date.now() - last > 300, { timeout: 90_000 }).toBe(true);
  page.off("request", begun).off("requestfinished", ended).off("requestfailed", ended);
}

/** Press Tab until the control has the focus. */
export async function tabTo(page: Page, testid: string): Promise<void> {
  for (let presses = 0; presses < 300; presses++) {
    const reached = await page.evaluate(
      (wanted) => document.activeElement?.getAttribute("data-testid") === wanted,
      testid,
    );
    if (reached) return;
    await page.keyboard.press("Tab");
  }
  throw new Error(`${testid} is not reached by Tab`);
}

/** Steps that the chart of the loss holds, from its CSV. */
export async function charted(page: Page): Promise<number[]> {
  const arrives = page.waitForEvent("download");
  await page.getByTestId("chart-loss").getByTestId("chart-csv").click();
  const [, ...lines] = readFileSync(await (await arrives).path(), "utf-8")
    .trim()
    .split("\r\n");
  return lines.filter((line) => line.split(",")[1] !== "").map((line) => Number(line.split(",")[0]));
}

/** Open an address of the page, signed in. */
export async function open(page: Page, server: Server, path: string): Promise<void> {
  await page.goto(`${server.origin}${path}#token=${server.token}`);
  await page.getByTestId("tab-start").waitFor();
}
