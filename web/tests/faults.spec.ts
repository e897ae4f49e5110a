/** What may go wrong while somebody looks: nothing is lost, nothing is shown twice, and the page says what happened. */
import { readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Page } from "@playwright/test";
import { rows, tinyModel } from "./furniture";
import { expect, open, test } from "./page";
import type { Server } from "./server";

let model: string;
test.beforeAll(async ({ server }) => {
  model = tinyModel(join(server.folder, "models", "tiny"));
  writeFileSync(join(server.data, "questions.jsonl"), rows(200));
});

/** Start a training that takes a while; return its run. */
async function begin(server: Server, steps = 1500): Promise<string> {
  const train = { max_steps: steps, logging_steps: 1, save_steps: 50, per_device_train_batch_size: 1 };
  const job = await server.ask<{ id: string }>("POST", "/jobs", {
    request_id: crypto.randomUUID(),
    kind: "train",
    name: "watched",
    when: "now",
    values: {
      model: { model_name_or_path: model },
      data: { dataset: ["questions.jsonl"], dataset_dir: server.data, template: "default" },
      train,
    },
  });
  let run: string | null = null;
  await expect
    .poll(async () => (run = (await server.ask<{ run: string | null }>("GET", `/jobs/${job.id}`)).run), {
      timeout: 30_000,
    })
    .toBeTruthy();
  return run ?? "";
}

const state = (page: Page) => page.getByTestId("state");
const step = async (page: Page) => Number(/\d+/.exec(await page.getByTestId("progress").first().innerText())?.[0] ?? 0);

async function reaches(page: Page, least: number): Promise<void> {
  await expect.poll(() => step(page), { timeout: 90_000 }).toBeGreaterThanOrEqual(least);
}

/** Steps that the chart of the loss holds, from its table. */
async function charted(page: Page): Promise<number[]> {
  await page.getByTestId("chart-loss").getByTestId("chart-table").click();
  const cells = await page.getByTestId("chart-loss").locator("tbody tr > :first-child").allInnerTexts();
  await page.getByTestId("chart-loss").getByTestId("chart-table").click();
  return cells.map((each) => Number(each.replace(/\D/g, "")));
}

test("the server dies while a run trains, and comes back", async ({ page, server, watch }) => {
  watch.expected = [/ERR_CONNECTION|ERR_INCOMPLETE|ERR_EMPTY|net::/];
  const run = await begin(server);
  await open(page, server, `/run/${run}`);
  await reaches(page, 10);
  await server.kill();
  const then = JSON.parse(readFileSync(join(server.runs, run, "status.json"), "utf-8")).step as number;
  await expect
    .poll(() => JSON.parse(readFileSync(join(server.runs, run, "status.json"), "utf-8")).step as number, {
      timeout: 60_000,
    })
    .toBeGreaterThan(then);
  await server.start();
  await expect(state(page)).toHaveAttribute("data-state", "done", { timeout: 240_000 });
  await page.reload();
  await expect(state(page)).toHaveAttribute("data-state", "done");
  const shown = await charted(page);
  const events = readFileSync(join(server.runs, run, "events.jsonl"), "utf-8")
    .trim()
    .split("\n")
    .map((each) => JSON.parse(each));
  expect(shown).toEqual(events.filter((each) => each.kind === "train").map((each) => each.step));
});

test("a job that is killed is crashed within five seconds, with its last lines", async ({ page, server }) => {
  const run = await begin(server);
  await open(page, server, `/run/${run}`);
  await reaches(page, 3);
  const { pid } = JSON.parse(readFileSync(join(server.runs, run, "status.json"), "utf-8")) as { pid: number };
  process.kill(pid, "SIGKILL");
  await expect(state(page)).toHaveAttribute("data-state", "crashed", { timeout: 5000 });
  await expect(page.getByTestId("log-tail")).not.toBeEmpty();
});

test("two browsers and a reload see the same run", async ({ page, browser, server }) => {
  const run = await begin(server, 150);
  const other = await (await browser.newContext()).newPage();
  await Promise.all([page, other].map((each) => open(each, server, `/run/${run}`)));
  await reaches(page, 20);
  await page.reload();
  await Promise.all(
    [page, other].map((each) => expect(state(each)).toHaveAttribute("data-state", "done", { timeout: 120_000 })),
  );
  const [one, two] = await Promise.all([charted(page), charted(other)]);
  expect(one).toEqual(two);
  expect(one).toEqual(Array.from({ length: 150 }, (_, i) => i + 1));
  await other.context().close();
});

test("two tabs press start: one run", async ({ page, context, server }) => {
  const before = (await server.ask<{ total: number }>("GET", "/runs")).total;
  await open(page, server, "/start");
  await page.getByTestId("field-model.model_name_or_path").fill(model);
  await page.getByTestId("learn-questions.jsonl").check();
  await page.getByTestId("search-settings").fill("max_steps");
  await page.getByTestId("field-train.max_steps").first().fill("3");
  await expect(page.getByTestId("start-now")).toBeEnabled({ timeout: 20_000 });
  await page.waitForTimeout(1500);
  const other = await context.newPage();
  await open(other, server, "/start");
  await expect(other.getByTestId("start-now")).toBeEnabled({ timeout: 20_000 });
  await Promise.all([page.getByTestId("start-now").click(), other.getByTestId("start-now").click()]);
  await Promise.all([page.waitForURL(/\/run\//), other.waitForURL(/\/run\//)]);
  expect(new URL(page.url()).pathname).toBe(new URL(other.url()).pathname);
  await expect(state(page)).toHaveAttribute("data-state", "done", { timeout: 60_000 });
  expect((await server.ask<{ total: number }>("GET", "/runs")).total).toBe(before + 1);
});

test("a run that is taken away is said to be gone", async ({ page, server, watch }) => {
  watch.expected = [/^404 /];
  const run = await begin(server, 3);
  await open(page, server, `/run/${run}`);
  await expect(state(page)).toHaveAttribute("data-state", "done", { timeout: 60_000 });
  renameSync(join(server.runs, run), join(server.folder, run));
  await expect(page.getByTestId("problems").or(page.getByTestId("gone"))).toBeVisible({ timeout: 15_000 });
  rmSync(join(server.folder, run), { recursive: true });
});

test("a broken text keeps what was typed and says what is wrong", async ({ page, server }) => {
  await open(page, server, "/start");
  await page.getByTestId("open-yaml").click();
  const text = "model_name_or_path: smollm2-135m\nlearnig_rate: 1e-4\nstage: [sft\n";
  await page.getByTestId("yaml").fill(text);
  await expect(page.getByTestId("problems").first()).toBeVisible({ timeout: 15_000 });
  await expect(page.getByTestId("yaml")).toHaveValue(text);
  await page.getByTestId("yaml").fill(text.replace("[sft", "sft"));
  await expect(page.getByTestId("problems").first()).toContainText("learning_rate", { timeout: 15_000 });
});

test("rows with markup and a broken line are text", async ({ page, server }) => {
  const evil = {
    instruction: "<script>window.evil=1</script><img src=x onerror='window.evil=1'>",
    input: "",
    output: "ok 🎻",
  };
  writeFileSync(
    join(server.data, "evil.jsonl"),
    `${JSON.stringify(evil)}\n{"instruction": "cut\n${JSON.stringify(evil)}\n`,
  );
  await open(page, server, `/data?dataset=evil.jsonl&folder=${encodeURIComponent(server.data)}`);
  await expect(page.getByText("window.evil=1").first()).toBeVisible();
  expect(await page.evaluate(() => (window as unknown as { evil?: number }).evil)).toBeUndefined();
});

test("an upload without rows and a stale token are told in words", async ({ page, server, watch }) => {
  watch.expected = [/^4\d\d /];
  await open(page, server, "/data");
  await page
    .getByTestId("upload-file")
    .setInputFiles({ name: "none.jsonl", mimeType: "application/json", buffer: Buffer.from("") });
  await expect(page.getByTestId("problems").first()).toBeVisible();
  await server.ask("POST", "/session/token", {}).catch(() => {});
  await page.goto(`${server.origin}/runs`);
  await expect(page.getByTestId("token")).toBeVisible();
});
