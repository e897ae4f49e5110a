import { cleanup, fireEvent, render, screen, waitFor } from "@testing-library/svelte";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { go, place } from "../../lib/router.svelte";
import { language } from "../../lib/words.svelte";
import { question } from "./search";
import Views from "./Views.svelte";
import { viewAt, viewOf, views } from "./views.svelte";

const KEPT = "runs.views";
const LORA = { name: "lora", query: { q: "rank:16", sort: "loss", descending: "false" }, columns: ["steps", "loss"] };
const ask = (text: string) => question(new URLSearchParams(text));

/** Another tab has written this. */
function elsewhere(text: string | null): void {
  if (text === null) localStorage.clear();
  else localStorage.setItem(KEPT, text);
  window.dispatchEvent(new StorageEvent("storage", { key: KEPT }));
}

beforeEach(() => {
  language.choose("en");
  elsewhere(null);
  go("/runs");
});
afterEach(cleanup);

describe("what the server is asked", () => {
  it("is what the address says, or the usual", () => {
    expect(ask("")).toMatchObject({ q: null, archived: "false", sort: "updated", descending: true, since: null });
    expect(ask("model=a%2Fb&sort=loss&descending=false")).toMatchObject({
      model: "a/b",
      sort: "loss",
      descending: false,
    });
  });
  it("has the days of whoever looks, the last one in it", () => {
    const { since, until } = ask("since=2026-03-28&until=2026-03-29");
    expect(Number(since)).toBe(new Date(2026, 2, 28).getTime() / 1000);
    expect(Number(until)).toBe(new Date(2026, 2, 30).getTime() / 1000);
    expect(Number(ask("until=2026-12-31")["until"])).toBe(new Date(2027, 0, 1).getTime() / 1000);
  });
  it("leaves it to the server to refuse what is no day", () => {
    for (const wrong of ["yesterday", "2026-02-30", "2026-13-01"]) expect(ask(`since=${wrong}`)["since"]).toBe(wrong);
  });
});

describe("views", () => {
  it("are kept, replaced, renamed and removed", () => {
    views.keep(LORA);
    views.keep({ name: "all", query: {}, columns: [] });
    views.keep({ ...LORA, columns: ["tags"] });
    expect(views.now.map(({ name, columns }) => [name, columns])).toEqual([
      ["lora", ["tags"]],
      ["all", []],
    ]);
    views.rename("lora", "good ones");
    views.remove("all");
    expect(JSON.parse(localStorage.getItem(KEPT)!)).toEqual([{ ...LORA, name: "good ones", columns: ["tags"] }]);
  });

  it("follow other tabs", () => {
    elsewhere(JSON.stringify([LORA]));
    expect(views.find("lora")).toEqual(LORA);
  });

  it.each(["{cut", "null", "7", '{"name": "x"}', '[null, 3, "x", {}, {"name": 5}, {"name": " "}]'])(
    "that are damaged are none: %s",
    (text) => {
      elsewhere(text);
      expect(views.now).toEqual([]);
      views.keep(LORA);
      expect(views.now).toEqual([LORA]);
    },
  );

  it("are whole, whatever a part of them is", () => {
    const odd = { q: 7, password: "x", sort: "loss", start: "900" };
    elsewhere(
      JSON.stringify([
        { name: " a ", query: odd, columns: ["gone", "loss", 3] },
        { name: "b", query: ["x"], columns: "loss" },
        { name: "a", query: null },
      ]),
    );
    expect(views.now).toEqual([
      { name: "a", query: {}, columns: [] },
      { name: "b", query: {}, columns: [] },
    ]);
    elsewhere(JSON.stringify([{ name: " a ", query: odd, columns: ["gone", "loss", 3] }]));
    expect(views.now).toEqual([{ name: "a", query: { sort: "loss" }, columns: ["loss"] }]);
  });

  it("are known again by what is looked at, not by the page of it", () => {
    views.keep(viewOf("mine", new URLSearchParams("sort=loss&q=rank%3A16&start=100"), ["loss"]));
    const at = (query: string, columns = ["loss"]) => viewAt(new URLSearchParams(query), columns)?.name;
    expect(at("q=rank%3A16&sort=loss&start=200&tag=")).toBe("mine");
    expect(at("q=rank%3A16&sort=loss", ["loss", "tags"])).toBeUndefined();
    expect(at("q=rank%3A8&sort=loss")).toBeUndefined();
  });
});

describe("the menu of views", () => {
  const show = (columns = ["steps", "loss"]) => {
    const choose = vi.fn();
    render(Views, { columns, choose });
    return choose;
  };
  const type = (id: string, value: string) => fireEvent.input(screen.getByTestId(id), { target: { value } });
  const submit = (id: string) => fireEvent.submit(screen.getByTestId(id).closest("form")!);

  it("keeps what is looked at, and takes the page back to it", async () => {
    go("/runs?q=rank%3A16&sort=loss&descending=false&start=100");
    const choose = show();
    await type("view-name", "  lora ");
    await submit("view-name");
    expect(views.now).toEqual([LORA]);
    expect(screen.getByTestId("views").textContent).toBe("View: lora");
    go("/runs?state=failed");
    await waitFor(() => expect(screen.getByTestId("views").textContent).toBe("Views"));
    await fireEvent.click(screen.getByTestId("view-take"));
    expect(Object.fromEntries(place.query)).toEqual(LORA.query);
    expect(choose).toHaveBeenCalledWith(["steps", "loss"]);
  });

  it("says that a name is taken before it replaces one, and never renames over one", async () => {
    views.keep(LORA);
    views.keep({ name: "other", query: {}, columns: [] });
    show();
    await type("view-name", "other");
    expect(screen.getByTestId("view-keep").textContent.trim()).toBe("Replace");
    await fireEvent.click(screen.getAllByTestId("view-rename")[0]!);
    await waitFor(() => expect(document.activeElement).toBe(screen.getByTestId("view-new-name")));
    await type("view-new-name", "other");
    await submit("view-new-name");
    expect(screen.getByRole("alert").textContent).toContain("other");
    expect(views.now.map(({ name }) => name)).toEqual(["lora", "other"]);
    await fireEvent.keyDown(screen.getByTestId("view-new-name"), { key: "Escape" });
    await waitFor(() => expect(document.activeElement).toBe(screen.getAllByTestId("view-rename")[0]));
    await fireEvent.click(screen.getAllByTestId("view-rename")[0]!);
    await type("view-new-name", "mine");
    await submit("view-new-name");
    expect(views.find("mine")).toEqual({ ...LORA, name: "mine" });
  });

  it("deletes one, and the focus is not lost", async () => {
    views.keep(LORA);
    show();
    await fireEvent.click(screen.getByTestId("view-delete"));
    expect(views.now).toEqual([]);
    await waitFor(() => expect(document.activeElement).toBe(screen.getByTestId("view-name")));
  });
});
