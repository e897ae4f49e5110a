import { cleanup, fireEvent, render, screen, waitFor } from "@testing-library/svelte";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { RunRow } from "../../lib/api/shapes";
import { language } from "../../lib/words.svelte";
import { COLUMNS, keepColumns, keptColumns } from "./columns";
import Delete from "./Delete.svelte";
import Filters from "./Filters.svelte";
import Table from "./Table.svelte";
import { undoable } from "./undo.svelte";

const row = (id: string, more: Partial<RunRow> = {}) =>
  ({ id, name: `run ${id}`, state: "done", step: 5, total: 10, loss: 0.5, tags: [], data: [], ...more }) as RunRow;

beforeEach(() => {
  language.choose("en");
  HTMLDialogElement.prototype.showModal = function () {
    this.open = true;
  };
  HTMLDialogElement.prototype.close = function () {
    this.open = false;
  };
});
afterEach(() => {
  cleanup();
  vi.unstubAllGlobals();
});

describe("list of runs", () => {
  const show = () => {
    const heard = { onselect: vi.fn(), onsort: vi.fn(), onact: vi.fn() };
    const columns = COLUMNS.filter(({ id }) => ["steps", "loss", "tags"].includes(id));
    const runs = ["a", "b", "c"].map((id) => row(id));
    render(Table, { runs, columns, selected: new Set(["b"]), sort: "step", descending: true, ...heard });
    return heard;
  };
  const rows = () => screen.getAllByTestId("run-row");

  it("is walked and worked by keys, and Tab reaches one row of it", async () => {
    const { onselect, onact } = show();
    expect(rows().map((each) => each.tabIndex)).toEqual([0, -1, -1]);
    rows()[0]?.focus();
    await fireEvent.keyDown(rows()[0]!, { key: "ArrowDown" });
    expect(document.activeElement).toBe(rows()[1]);
    await waitFor(() => expect(rows().map((each) => each.tabIndex)).toEqual([-1, 0, -1]));
    await fireEvent.keyDown(rows()[1]!, { key: " " });
    expect(onselect).toHaveBeenLastCalledWith(new Set());
    await fireEvent.keyDown(rows()[2]!, { key: " " });
    expect(onselect).toHaveBeenLastCalledWith(new Set(["b", "c"]));
    await fireEvent.keyDown(rows()[2]!, { key: "Delete" });
    expect(onact.mock.calls.map(([action, run]) => [action, (run as RunRow).id])).toEqual([["delete", "c"]]);
    await fireEvent.keyDown(rows()[0]!, { key: "Enter" });
    expect(location.pathname).toBe("/run/a");
  });

  it("leaves keys to what stands in a row", async () => {
    const { onact } = show();
    await fireEvent.keyDown(screen.getByRole("link", { name: "run a" }), { key: "Delete" });
    expect(onact).not.toHaveBeenCalled();
  });

  it("says which column it is sorted by, and sorts by those that the server knows", async () => {
    const { onsort } = show();
    expect(screen.getByTestId("sort-step").closest("th")?.getAttribute("aria-sort")).toBe("descending");
    expect(screen.getByTestId("sort-loss").closest("th")?.hasAttribute("aria-sort")).toBe(false);
    screen.getByTestId("sort-name").click();
    expect(onsort).toHaveBeenCalledWith("name");
    expect(screen.queryByTestId("sort-tags")).toBeNull();
  });

  it("calls a folder by its own name, and says where it is", () => {
    const columns = COLUMNS.filter(({ id }) => id === "model");
    const runs = [row("a", { model: "/srv/models/tiny/" }), row("b", { model: "Qwen/Qwen3-1.7B" })];
    const heard = { onselect: vi.fn(), onsort: vi.fn(), onact: vi.fn() };
    render(Table, { runs, columns, selected: new Set<string>(), sort: "name", descending: false, ...heard });
    expect(screen.getByTitle("/srv/models/tiny/").textContent).toBe("tiny");
    expect(screen.getByTitle("Qwen/Qwen3-1.7B").textContent).toBe("Qwen/Qwen3-1.7B");
  });

  it("offers models by what tells them apart", () => {
    render(Filters, { tags: [], objectives: [], models: ["/a/tiny", "/b/tiny", "/b/large"] });
    const options = [...screen.getByTestId<HTMLSelectElement>("filter-model").options];
    expect(options.map(({ value, text }) => [value, text])).toEqual([
      ["", "any"],
      ["/a/tiny", "/a/tiny"],
      ["/b/tiny", "/b/tiny"],
      ["/b/large", "large"],
    ]);
  });

  it("keeps the choice of columns, without those that there are no more", () => {
    keepColumns(["steps", "tags"]);
    expect(keptColumns()).toEqual(["steps", "tags"]);
    localStorage.setItem("runs.columns", "steps,odd");
    expect(keptColumns()).toEqual(["steps"]);
  });
});

describe("deleting", () => {
  let asked: string[] = [];
  const serve = (bytes: number, refuse = "") => {
    asked = [];
    vi.stubGlobal("fetch", async (path: string, { method }: RequestInit) => {
      asked.push(`${method} ${path}`);
      if (refuse && path.includes(refuse) && path.includes("dry_run=false")) {
        const error = { code: "run_locked", message: "b is in use" };
        return new Response(JSON.stringify({ error, problems: [error] }), { status: 409 });
      }
      const done = path.includes("dry_run=false");
      const until = done ? Date.now() / 1000 + 30 : null;
      const body = { run: "a", bytes, files: 3, checkpoints: 1, exports: ["gguf"], done, undo_until: until };
      return new Response(JSON.stringify(body));
    });
  };
  const show = (...ids: string[]) => {
    const done = vi.fn();
    render(Delete, { runs: ids.map((id) => ({ id, name: `run ${id}` })), open: true, done });
    return done;
  };
  const button = () => screen.getByTestId<HTMLButtonElement>("delete-now");

  it("says what goes before anything goes, and can be undone", async () => {
    serve(2e6);
    const done = show("a");
    expect(button().disabled).toBe(true);
    await waitFor(() =>
      expect(screen.getByTestId("delete-what").textContent).toContain("3 files, 2 MB, 1 checkpoints"),
    );
    expect(screen.getByTestId("delete-what").textContent).toContain("gguf");
    expect(asked).toEqual(["DELETE /api/runs/a?dry_run=true"]);
    await fireEvent.submit(document.getElementById("delete-runs")!);
    await waitFor(() => expect(done).toHaveBeenCalledWith(["a"]));
    expect(asked.at(-1)).toBe("DELETE /api/runs/a?dry_run=false");
    expect(undoable.now.map(({ id }) => id)).toEqual(["a"]);
    await undoable.undo();
    expect(asked.at(-1)).toBe("POST /api/runs/a/undelete");
    expect(undoable.now).toEqual([]);
  });

  it("above a gigabyte wants the name", async () => {
    serve(1.5e9);
    const done = show("a");
    const field = await screen.findByTestId("delete-typed");
    expect(button().disabled).toBe(true);
    await fireEvent.submit(document.getElementById("delete-runs")!);
    expect(done).not.toHaveBeenCalled();
    await fireEvent.input(field, { target: { value: "run a" } });
    await waitFor(() => expect(button().disabled).toBe(false));
  });

  it("names those that were refused, and takes the others", async () => {
    serve(10, "/b?");
    const done = show("a", "b", "c");
    await waitFor(() => expect(button().disabled).toBe(false));
    await fireEvent.submit(document.getElementById("delete-runs")!);
    await waitFor(() => expect(done).toHaveBeenCalledWith(["a", "c"]));
    expect(screen.getByTestId("problems").textContent).toContain("b is in use");
    expect(undoable.now.map(({ id }) => id)).toEqual(["a", "c"]);
    undoable.tidy(Date.now() + 31_000);
    expect(undoable.now).toEqual([]);
  });
});
