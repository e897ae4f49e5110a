/** What every test of the page holds: nothing from elsewhere, no error in the console, a session. */
import { expect, type Page, test as base } from "@playwright/test";
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

/** Open an address of the page, signed in. */
export async function open(page: Page, server: Server, path: string): Promise<void> {
  await page.goto(`${server.origin}${path}#token=${server.token}`);
  await page.getByTestId("tab-start").waitFor();
}
