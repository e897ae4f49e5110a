import { cleanup, fireEvent, render, screen, waitFor } from "@testing-library/svelte";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { Shapes } from "../../lib/api/shapes";
import { Resource } from "../../lib/resource.svelte";
import { go, place } from "../../lib/router.svelte";
import { language } from "../../lib/words.svelte";
import Audit from "./Audit.svelte";
import Clean from "./Clean.svelte";
import { chosenKinds, mendable } from "./kinds";

const chosen = { dataset: "rows.jsonl", folder: "/data" };
const finding = (kind: string, level: "error" | "warning", row: number | null) => ({
  kind,
  level,
  row,
  where: `rows.jsonl:${(row ?? 0) + 1}`,
  message: "is bad",
});
const found = (more: Partial<Shapes["Audit"]> = {}): Shapes["Audit"] =>
  ({
    dataset: "rows.jsonl",
    state: "done",
    counts: { duplicate: 2, broken_json: 1, leak: 1 },
    levels: { duplicate: "warning", broken_json: "error", leak: "warning" },
    findings: [
      finding("duplicate", "warning", 1),
      finding("broken_json", "error", 3),
      finding("leak", "warning", null),
    ],
    stale: false,
    ...more,
  }) as Shapes["Audit"];

class Silent {
  observe(): void {}
  unobserve(): void {}
  disconnect(): void {}
}

let posted: unknown[] = [];

beforeEach(() => {
  language.choose("en");
  posted = [];
  vi.stubGlobal("ResizeObserver", Silent);
  vi.stubGlobal("fetch", (path: string, options: RequestInit) => {
    if (options.body) posted.push(JSON.parse(String(options.body)));
    const preview = { before: 6, after: 4, dropped: {}, examples: [], written: null };
    return Promise.resolve(new Response(JSON.stringify(path.includes("/clean") ? preview : {})));
  });
});
afterEach(() => {
  cleanup();
  vi.unstubAllGlobals();
  go("/");
});

async function audited(audit: Shapes["Audit"]): Promise<Resource<Shapes["Audit"]>> {
  const resource = new Resource(() => Promise.resolve(audit));
  await resource.load();
  return resource;
}

const marked = (): string[] =>
  screen
    .getAllByRole<HTMLInputElement>("checkbox")
    .filter((box) => box.checked)
    .map((box) => box.value);

describe("findings", () => {
  it.each([
    ["all, those that cannot be trained on", "", ["broken_json"]],
    ["a kind", "&kind=duplicate", ["duplicate"]],
    ["a level", "&level=warning", ["duplicate"]],
  ])("lead to cleaning: %s", async (_, query, expected) => {
    go(`/data?tab=audit${query}`);
    const audit = await audited(found());
    const { unmount } = render(Audit, { chosen, audit });
    await fireEvent.click(screen.getByTestId("clean-rows"));
    expect(place.query.get("tab")).toBe("clean");
    expect(place.query.get("kind")).toBeNull();
    unmount();
    render(Clean, { chosen, audit });
    expect(marked()).toEqual(expected);
    expect(screen.queryByTestId("drop-leak"), "nothing of the file would go").toBeNull();
    await fireEvent.click(screen.getByTestId("clean-preview"));
    await waitFor(() => expect(posted).toHaveLength(1));
    expect(posted[0]).toMatchObject({ ...chosen, drop: expected, name: "rows-clean.jsonl" });
  });

  it("that no row can be left out for, or of another file, lead nowhere", async () => {
    go("/data?tab=audit&kind=leak");
    render(Audit, { chosen, audit: await audited(found()) });
    expect(screen.queryByTestId("clean-rows")).toBeNull();
    cleanup();
    go("/data?tab=audit");
    const stale = await audited(found({ stale: true }));
    render(Audit, { chosen, audit: stale });
    expect(screen.queryByTestId("clean-rows")).toBeNull();
    cleanup();
    render(Clean, { chosen, audit: stale });
    expect(screen.queryByTestId("clean-preview")).toBeNull();
    expect(screen.getByText("The file has changed since it was checked.")).toBeTruthy();
  });

  it("are downloaded as they are looked at", async () => {
    go("/data?tab=audit&level=error");
    render(Audit, { chosen, audit: await audited(found()) });
    const address = new URL(screen.getByTestId<HTMLAnchorElement>("bad-rows").href);
    expect(address.searchParams.get("kinds")).toBe("broken_json");
  });

  it("are marked as asked, or else by what cannot be trained on", () => {
    const kinds = ["broken_json", "duplicate"];
    expect(chosenKinds(found(), kinds, "duplicate,leak")).toEqual(["duplicate"]);
    expect(chosenKinds(found(), kinds, "unknown")).toEqual(["broken_json"]);
    expect(chosenKinds(found(), kinds, null)).toEqual(["broken_json"]);
    expect(mendable(found(), ["leak", "duplicate"])).toEqual(["duplicate"]);
    expect(mendable(null, ["duplicate"])).toEqual([]);
  });
});
