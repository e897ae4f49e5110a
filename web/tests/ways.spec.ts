/** Other ways to the same end: by keyboard alone, and all of it in Chinese. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
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

/** A run that is over, as its files tell it. */
function finished(server: Server, name: string, model: string, day: string): void {
  mkdirSync(join(server.runs, name), { recursive: true });
  const when = `${day}T12:00:00.000+00:00`;
  const status = { schema: 1, state: "done", name, step: 1, total: 1, started: when, updated: when };
  writeFileSync(server.file(name, "status.json"), JSON.stringify(status));
  writeFileSync(server.file(name, "config.yaml"), `model: {model_name_or_path: ${model}}\nobjective: {name: sft}\n`);
}

test("a search gets a name, is found again, renamed and deleted, by keyboard alone", async ({ page, server }) => {
  finished(server, "early", "maple", "2025-03-01");
  finished(server, "late", "maple", "2025-03-31");
  finished(server, "spruce", "spruce", "2025-03-31");
  const shown = () => page.getByTestId("run-row").evaluateAll((rows) => rows.map((row) => row.dataset["id"]));
  const press = async (testid: string, key = "Enter") => {
    await tabTo(page, testid);
    await page.keyboard.press(key);
  };
  await open(page, server, "/runs?sort=name&descending=false&until=2025-03-31");
  await expect.poll(shown).toEqual(["early", "late", "spruce"]);
  await tabTo(page, "filter-model");
  await page.keyboard.type("maple");
  await expect.poll(shown).toEqual(["early", "late"]);
  await page.getByTestId("filter-since").fill("2025-03-31");
  await expect.poll(shown).toEqual(["late"]);
  await press("views");
  await tabTo(page, "view-name");
  await page.keyboard.type("maple in March");
  await page.keyboard.press("Enter");
  await expect(page.getByTestId("views")).toHaveText("View: maple in March");
  await page.keyboard.press("Escape");
  await expect(page.getByTestId("view-name")).toBeHidden();
  await expect(page.getByTestId("views")).toBeFocused();

  await page.goto(`${server.origin}/runs`);
  await expect(page.getByTestId("views")).toHaveText("Views");
  await press("views");
  await press("view-take");
  await expect.poll(shown).toEqual(["late"]);
  expect(new URL(page.url()).searchParams.get("model")).toBe("maple");
  await expect(page.getByTestId("views")).toBeFocused();

  await page.keyboard.press("Enter");
  await press("view-rename");
  await page.keyboard.type("the last of March");
  await page.keyboard.press("Enter");
  await expect(page.getByTestId("views")).toHaveText("View: the last of March");
  await press("view-delete");
  await expect(page.getByTestId("view")).toHaveCount(0);
  await page.reload();
  await expect.poll(shown).toEqual(["late"]);
  await expect(page.getByTestId("views")).toHaveText("Views");
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
