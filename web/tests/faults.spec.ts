/** What may go wrong while somebody looks: nothing is lost, nothing is shown twice, and the page says what happened. */
import { cpSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { rows, tinyModel } from "./furniture";
import { charted, expect, open, test } from "./page";
import { becomes, begin, reaches } from "./runs";

let model: string;
test.beforeAll(async ({ server }) => {
  model = tinyModel(join(server.folder, "models", "tiny"));
  writeFileSync(join(server.data, "questions.jsonl"), rows(200));
});

test("the server dies while a run trains, and comes back", async ({ page, server, watch }) => {
  watch.expected = [/ERR_CONNECTION|ERR_INCOMPLETE|ERR_EMPTY|net::/];
  const run = await begin(server, model, 100_000);
  await open(page, server, `/run/${run}`);
  await reaches(page, 10);
  await server.kill();
  const then = server.status(run).step;
  await expect(page.getByTestId("away")).toBeVisible({ timeout: 15_000 });
  await expect(page.getByTestId("chart-loss").locator("canvas")).toBeVisible();
  await expect.poll(() => server.status(run).step, { timeout: 30_000 }).toBeGreaterThan(then);
  await server.start();
  await expect(page.getByTestId("away")).toBeHidden({ timeout: 30_000 });
  await reaches(page, then + 10);
  await page.getByTestId("stop").click();
  await becomes(page, "stopped");
  const steps = server.steps(run);
  expect(steps).toEqual(steps.map((_, i) => i + 1));
  await expect.poll(() => charted(page)).toEqual(steps);
  await page.reload();
  await becomes(page, "stopped");
  await expect.poll(() => charted(page)).toEqual(steps);
});

test("a job that is killed is crashed within five seconds, with its last lines", async ({ page, server }) => {
  const run = await begin(server, model, 100_000);
  await open(page, server, `/run/${run}`);
  await reaches(page, 3);
  process.kill(server.status(run).pid, "SIGKILL");
  await becomes(page, "crashed", 5000);
  await expect(page.getByTestId("log-tail")).not.toBeEmpty();
});

test("a job that dies at once shows its last lines", async ({ page, server }) => {
  const broken = join(server.folder, "models", "broken");
  cpSync(model, broken, { recursive: true });
  truncateSync(join(broken, "model.safetensors"), 1000);
  const run = await begin(server, broken, 3);
  await open(page, server, `/run/${run}`);
  await expect(page.getByTestId("reason")).toBeVisible({ timeout: 60_000 });
  await expect(page.getByTestId("reason")).toContainText("model.safetensors");
  await expect(page.getByTestId("log-tail")).not.toBeEmpty();
});

test("two browsers and a reload see the same run", async ({ page, browser, server }) => {
  const run = await begin(server, model, 120);
  const other = await (await browser.newContext()).newPage();
  await Promise.all([page, other].map((each) => open(each, server, `/run/${run}`)));
  await reaches(page, 20);
  await page.reload();
  await Promise.all([page, other].map((each) => becomes(each, "done")));
  const all = Array.from({ length: 120 }, (_, i) => i + 1);
  expect(server.steps(run)).toEqual(all);
  for (const each of [page, other]) await expect.poll(() => charted(each)).toEqual(all);
  await other.context().close();
});

test("a tab that was hidden shows what it missed", async ({ page, server }) => {
  await page.addInitScript(() => {
    const faked = window as unknown as { hide: (hidden: boolean) => void };
    faked.hide = (hidden) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
      Object.defineProperty(document, "visibilityState", {
        get: () => (hidden ? "hidden" : "visible"),
        configurable: true,
      });
      document.dispatchEvent(new Event("visibilitychange"));
    };
  });
  const hide = (hidden: boolean) =>
    page.evaluate((value) => (window as unknown as { hide: (hidden: boolean) => void }).hide(value), hidden);
  const run = await begin(server, model, 150);
  await open(page, server, `/run/${run}`);
  await reaches(page, 5);
  await hide(true);
  await expect.poll(() => server.status(run).state, { timeout: 180_000 }).toBe("done");
  expect(await page.getByTestId("state").getAttribute("data-state")).not.toBe("done");
  await hide(false);
  await becomes(page, "done", 10_000);
  await expect.poll(() => charted(page)).toEqual(Array.from({ length: 150 }, (_, i) => i + 1));
});

test("two tabs press start: one run", async ({ page, context, server }) => {
  const before = (await server.ask<{ total: number }>("GET", "/runs")).total;
  await open(page, server, "/start");
  await page.getByTestId("field-model.model_name_or_path").fill(model);
  await page.getByTestId("learn-questions.jsonl").check();
  await page.getByTestId("search-settings").fill("max_steps");
  await page.getByTestId("field-train.max_steps").first().fill("3");
  await expect(page.getByTestId("start-now")).toBeEnabled({ timeout: 20_000 });
  await expect
    .poll(() => page.evaluate(() => Object.values(localStorage).some((each) => String(each).includes("max_steps"))))
    .toBe(true);
  const other = await context.newPage();
  await open(other, server, "/start");
  await expect(other.getByTestId("learn-questions.jsonl")).toBeChecked({ timeout: 20_000 });
  await Promise.all([page, other].map((each) => each.getByTestId("start-now").click()));
  await Promise.all([page.waitForURL(/\/run\//), other.waitForURL(/\/run\//)]);
  expect(new URL(page.url()).pathname).toBe(new URL(other.url()).pathname);
  await becomes(page, "done");
  expect((await server.ask<{ total: number }>("GET", "/runs")).total).toBe(before + 1);
});

test("a run that is taken away is said to be gone", async ({ page, server, watch }) => {
  watch.expected = [/^404 /];
  const run = await begin(server, model, 3);
  await open(page, server, `/run/${run}`);
  await becomes(page, "done");
  renameSync(join(server.runs, run), join(server.folder, run));
  await expect(page.getByRole("heading", { name: "This run is not there any more" })).toBeVisible({ timeout: 15_000 });
  await page.goto(`${server.origin}/runs`);
  await expect(page.getByTestId("runs").or(page.getByTestId("empty"))).toBeVisible();
  await expect(page.locator(`a[href="/run/${run}"]`)).toHaveCount(0);
  rmSync(join(server.folder, run), { recursive: true });
});

test("a broken text keeps what was typed and says what is wrong", async ({ page, server }) => {
  await open(page, server, "/start?view=yaml");
  const text = "model_name_or_path: smollm2-135m\nlearnig_rate: 1e-4\nstage: [sft\n";
  await page.getByTestId("yaml").fill(text);
  const said = page.getByRole("tabpanel").locator("ul.problems");
  await expect(said).not.toBeEmpty({ timeout: 15_000 });
  await expect(page.getByTestId("yaml")).toHaveValue(text);
  await page.getByTestId("yaml").fill(text.replace("[sft", "sft"));
  await expect(said).toContainText("learning_rate", { timeout: 15_000 });
  await page.reload();
  await expect(page.getByTestId("yaml")).toHaveValue(text.replace("[sft", "sft"));
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

test("a data set without rows is told in words", async ({ page, server, watch }) => {
  watch.expected = [/^4\d\d /];
  writeFileSync(join(server.data, "blank.jsonl"), "");
  await open(page, server, `/data?dataset=blank.jsonl&folder=${encodeURIComponent(server.data)}`);
  await expect(page.locator("main")).toContainText(/no rows|0 rows/i, { timeout: 15_000 });
  await page.goto(`${server.origin}/data`);
  const empty = { name: "none.jsonl", mimeType: "application/json", buffer: Buffer.from("") };
  await page.getByTestId("upload-file").setInputFiles(empty);
  await expect(page.getByTestId("problems").first()).toContainText("none.jsonl");
  expect(readFileSync(join(server.data, "blank.jsonl"), "utf-8")).toBe("");
});

test("a token that was changed leads to the sign-in, and the new one in", async ({ page, server, watch }) => {
  watch.expected = [/^401 /];
  await open(page, server, "/runs");
  await server.ask("POST", "/session/token", {});
  await page.goto(`${server.origin}/queue`);
  await page.getByTestId("token").fill("x".repeat(43));
  await page.getByTestId("sign-in").click();
  await expect(page.getByTestId("problems")).toBeVisible();
  await page.getByTestId("token").fill(server.token);
  await page.getByTestId("sign-in").click();
  await expect(page.getByTestId("tab-queue")).toBeVisible();
});
