/** Other ways to the same end: by keyboard alone, and all of it in Chinese. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Page } from "@playwright/test";
import { rows, tinyModel } from "./furniture";
import { expect, open, tabTo, test } from "./page";
import { becomes, shownRun } from "./runs";
import type { Server } from "./server";

let model: string;
test.beforeAll(async ({ server }) => {
  model = tinyModel(join(server.folder, "models", "tiny"));
  writeFileSync(join(server.data, "questions.jsonl"), rows(40));
});

/** What a text of settings means, but for where it is written to. */
async function meaning(server: Server, yaml: string): Promise<Record<string, Record<string, unknown>>> {
  const look = await server.ask<{ resolved: Record<string, Record<string, unknown>> }>("POST", "/config/look", {
    yaml,
  });
  expect(look.resolved["train"]?.["max_steps"]).toBe(3);
  delete look.resolved["train"]?.["output_dir"];
  return look.resolved;
}

/** Replace what a field holds, by keyboard. */
async function type(page: Page, testid: string, text: string): Promise<void> {
  await tabTo(page, testid);
  await page.keyboard.press("ControlOrMeta+a");
  await page.keyboard.type(text);
}

test("a run is started by keyboard alone, with the settings that are shown as text", async ({ page, server }) => {
  await open(page, server, "/start");
  await page.getByTestId("learn-questions.jsonl").waitFor();
  await type(page, "field-model.model_name_or_path", model);
  await tabTo(page, "learn-questions.jsonl");
  await page.keyboard.press("Space");
  await expect(page.getByTestId("learn-questions.jsonl")).toBeChecked();
  await tabTo(page, "goal-teach");
  await page.keyboard.press("ArrowDown");
  await expect(page.getByTestId("goal-continue")).toBeChecked();
  await page.keyboard.press("ArrowUp");
  await expect(page.getByTestId("goal-teach")).toBeChecked();
  await type(page, "search-settings", "max_steps");
  await expect(page.getByTestId("field-train.max_steps").or(page.getByTestId("found-train.max_steps"))).toBeVisible();
  await type(page, "field-train.max_steps", "3");
  await tabTo(page, "tab-form");
  await page.keyboard.press("ArrowRight");
  await expect(page.getByTestId("yaml")).toHaveValue(/max_steps: 3/);
  const shown = await page.getByTestId("yaml").inputValue();
  await tabTo(page, "start-now");
  await page.keyboard.press("Enter");
  await page.waitForURL(/\/run\//);
  await becomes(page, "done");
  const written = readFileSync(server.file(shownRun(page), "config.yaml"), "utf-8");
  const [asked, ran] = await Promise.all([shown, written].map((yaml) => meaning(server, yaml)));
  // 0 takes the usual rate of the method, and a run writes down which one that was.
  expect(asked?.["train"]?.["learning_rate"]).toBe(0);
  expect(ran?.["train"]?.["learning_rate"]).toBeGreaterThan(0);
  expect({ ...ran, train: { ...ran?.["train"], learning_rate: 0 } }).toEqual(asked);
});

test("one run in Chinese", async ({ page, server }) => {
  await page.addInitScript(() => localStorage.setItem("language", "zh"));
  await open(page, server, "/start");
  await expect(page.locator("html")).toHaveAttribute("lang", /^zh/);
  await page.getByTestId("field-model.model_name_or_path").fill(model);
  const learn = page.getByTestId("learn-questions.jsonl");
  await expect(learn).toHaveAccessibleName(/训练/);
  await learn.check();
  await page.getByTestId("search-settings").fill("max_steps");
  await page.getByTestId("field-train.max_steps").first().fill("4");
  await page.getByTestId("name").fill("小提琴 🎻");
  await page.getByRole("button", { name: "立即开始" }).click();
  await page.waitForURL(/\/run\//);
  await becomes(page, "done");
  await expect(page.getByRole("heading", { name: "小提琴 🎻" })).toBeVisible();
  await page.getByTestId("tab-notes").click();
  await page.goto(`${server.origin}/runs?q=${encodeURIComponent("小提琴")}`);
  await expect(page.getByTestId("run-row")).toHaveCount(1);
  await expect(page.getByTestId("run-row")).toContainText("小提琴 🎻");
  await page.goto(`${server.origin}/start?view=yaml`);
  await page.getByTestId("yaml").fill("stage: [sft\n");
  await expect(page.locator("main")).toContainText(/第 \d+ 行/);
});
