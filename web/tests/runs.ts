/** Runs that are started from outside the page, and what a test asks of the page that shows one. */
import { expect, type Page } from "@playwright/test";
import type { Server } from "./server";

/** Start a training of a tiny model on `questions.jsonl`; return its run. */
export async function begin(server: Server, model: string, steps: number): Promise<string> {
  const job = await server.ask<{ id: string }>("POST", "/jobs", {
    request_id: crypto.randomUUID(),
    kind: "train",
    name: "watched",
    when: "now",
    values: {
      model: { model_name_or_path: model },
      data: { dataset: ["questions.jsonl"], dataset_dir: server.data, template: "default" },
      train: { max_steps: steps, logging_steps: 1, save_steps: 50, per_device_train_batch_size: 1 },
    },
  });
  let run: string | null = null;
  await expect
    .poll(async () => (run = (await server.ask<{ run: string | null }>("GET", `/jobs/${job.id}`)).run))
    .toBeTruthy();
  return run ?? "";
}

const ENDED_BADLY = ["failed", "crashed", "never started"];

/** The run's state must be this one, and become so in time; one that ended badly is not waited for. */
export async function becomes(page: Page, state: string, timeout = 180_000): Promise<void> {
  const shown = page.getByTestId("state");
  const awaited = new RegExp(`^(${[...new Set([state, ...ENDED_BADLY])].join("|")})$`);
  await expect(shown).toHaveAttribute("data-state", awaited, { timeout });
  const last = (await page.getByTestId("log-tail").allInnerTexts()).join().slice(-500);
  expect(await shown.getAttribute("data-state"), last).toBe(state);
}

/** Wait until the page shows at least this step. */
export async function reaches(page: Page, least: number): Promise<void> {
  const bar = page.getByTestId("progress").first();
  const step = async () => Number(/\d+/.exec(await bar.innerText())?.[0] ?? 0);
  await expect.poll(step, { timeout: 180_000 }).toBeGreaterThanOrEqual(least);
}

/** The run whose page is shown. */
export const shownRun = (page: Page): string => decodeURIComponent(new URL(page.url()).pathname.split("/")[2] ?? "");
