/** The whole way with the packaged model: train, watch, stop, go on, evaluate, talk, export. */
import { cpSync, existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import type { Page } from "@playwright/test";
import { charted, expect, open, test } from "./page";
import { becomes, reaches, shownRun } from "./runs";
import { Server } from "./server";

test.setTimeout(1_500_000);

// The packaged model is unpacked once a machine, into the usual cache.
test.use({
  server: [
    async ({}, use) => {
      const server = new Server([], { sharedCache: true });
      cpSync(
        join(import.meta.dirname, "../../examples/data/instruments.jsonl"),
        join(server.data, "instruments.jsonl"),
      );
      await use(await server.start());
      await server.close();
    },
    { scope: "worker" },
  ],
});

const SETTINGS = {
  "train.max_steps": "10",
  "train.logging_steps": "1",
  "train.save_steps": "3",
  "data.val_size": "4",
  "data.cutoff_len": "128",
  "train.per_device_train_batch_size": "1",
};

async function fill(page: Page, settings: Record<string, string>): Promise<void> {
  for (const [key, value] of Object.entries(settings)) {
    await page.getByTestId("search-settings").fill(key.split(".")[1] ?? key);
    await page.getByTestId(`field-${key}`).first().fill(value);
  }
}

test("from a name to a file that others run", async ({ page, server }) => {
  await test.step("prepare and start", async () => {
    await open(page, server, "/start");
    await page.getByTestId("field-model.model_name_or_path").fill("smollm2-135m");
    await page.getByTestId("learn-instruments.jsonl").check();
    await fill(page, SETTINGS);
    await page.getByTestId("name").fill("Violin 小提琴 🎻");
    await expect(page.getByTestId("start-now")).toBeEnabled({ timeout: 20_000 });
    await page.getByTestId("start-now").dblclick();
    await page.waitForURL(/\/run\//);
  });
  const run = shownRun(page);
  const file = (name: string) => server.file(run, name);

  await test.step("points arrive while it runs", async () => {
    await becomes(page, "running");
    expect(readdirSync(server.runs).filter((name) => !name.startsWith("."))).toEqual([run]);
    await reaches(page, 3);
    await expect(page.getByTestId("chart-loss").locator("canvas")).toBeVisible();
  });

  await test.step("stop with a checkpoint, go on", async () => {
    await page.getByTestId("stop").click();
    await becomes(page, "stopped");
    expect(readdirSync(join(server.runs, run)).some((name) => name.startsWith("checkpoint-"))).toBe(true);
    await page.getByTestId("resume").click();
    await becomes(page, "done", 300_000);
    const steps = Array.from({ length: 10 }, (_, i) => i + 1);
    expect(server.steps(run)).toEqual(steps);
    await expect.poll(() => charted(page)).toEqual(steps);
  });

  await test.step("evaluate beside the base", async () => {
    await page.getByTestId("to-evaluate").click();
    await page.locator("summary", { hasText: "What is measured" }).click();
    for (const kind of ["loss", "generate"]) await page.getByTestId(`kind-${kind}`).check();
    await page.getByTestId("tokens").fill("8");
    await page.getByTestId("evaluate-start").click();
    await expect(page.getByTestId("results")).toBeVisible({ timeout: 400_000 });
    await expect(page.getByTestId("results").getByRole("row")).not.toHaveCount(1);
  });

  await test.step("talk to both", async () => {
    await page.goto(`${server.origin}/chat?run=${encodeURIComponent(run)}`);
    const both = page.getByTestId("both");
    if (!(await both.isChecked())) await both.check();
    await page.getByTestId("load").click();
    await expect(page.getByTestId("question")).toBeEnabled({ timeout: 180_000 });
    await page.getByTestId("question").fill("How many strings has a violin? <img src=x onerror=alert(1)>");
    await expect(page.getByTestId("send")).toBeEnabled({ timeout: 180_000 });
    await page.getByTestId("sampling").locator("summary").click();
    await page.getByTestId("max_tokens").fill("16");
    await page.getByTestId("send").click();
    for (const column of [0, 1]) {
      await expect(page.getByTestId(`answer-0-${column}-text`)).not.toBeEmpty({ timeout: 120_000 });
    }
    await expect(page.locator(".turns img")).toHaveCount(0);
  });

  await test.step("export a GGUF file, verified", async () => {
    await page.goto(`${server.origin}/export?run=${encodeURIComponent(run)}`);
    await page.getByTestId("format-gguf").check();
    await page.getByTestId("export-start").click();
    await expect(page.getByTestId("report").first()).toBeVisible({ timeout: 400_000 });
    const folder = file(join("export", "gguf"));
    expect(existsSync(folder)).toBe(true);
    expect(readdirSync(folder).some((name) => name.endsWith(".gguf"))).toBe(true);
  });
});
