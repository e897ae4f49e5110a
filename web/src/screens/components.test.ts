import { cleanup, fireEvent, render, screen } from "@testing-library/svelte";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { language } from "../lib/words.svelte";
import Answer from "./chat/Answer.svelte";
import Composer from "./chat/Composer.svelte";
import Upload from "./data/Upload.svelte";
import TokenText from "./data/TokenText.svelte";
import Results from "./evaluate/Results.svelte";
import Report from "./export/Report.svelte";

beforeEach(() => language.choose("en"));
afterEach(cleanup);

const ANSWER = {
  name: "tuned",
  text: '<script>alert(1)</script><img src=x onerror="alert(2)">',
  thoughts: "",
  state: "done" as const,
  finish: "length",
  promptTokens: 7,
  tokens: 11,
  wait: 1,
  seconds: 2,
  problems: [],
};

describe("an answer", () => {
  it("is text, whatever it holds, and says how it ended", () => {
    const { container } = render(Answer, { answer: ANSWER, question: "q", testid: "a" });
    expect(screen.getByTestId("a-text").textContent).toBe(ANSWER.text);
    expect(container.querySelector("script, img")).toBeNull();
    expect(screen.getByText(/cut at the limit/)).toBeTruthy();
    expect(screen.getByText(/11 tokens · 7 tokens asked · 5 tokens\/s/)).toBeTruthy();
  });
  it("without memory says what helps", () => {
    const problems = [{ code: "out_of_memory", message: "cannot allocate", field: null, place: null }];
    render(Answer, { answer: { ...ANSWER, state: "failed", problems }, question: "q", testid: "a" });
    expect(screen.getByText(/Unload another model/)).toBeTruthy();
  });
});

describe("the composer", () => {
  const actions = { send: vi.fn(), stop: vi.fn(), clear: null, busy: false, disabled: false };
  beforeEach(() => void actions.send.mockClear());

  it("sends by Enter, but not what an input method is still composing, and not what is empty", async () => {
    render(Composer, { ...actions, draft: "你好" });
    const box = screen.getByTestId("question");
    await fireEvent.keyDown(box, { key: "Enter", isComposing: true });
    await fireEvent.keyDown(box, { key: "Enter", shiftKey: true });
    expect(actions.send).not.toHaveBeenCalled();
    await fireEvent.keyDown(box, { key: "Enter" });
    expect(actions.send).toHaveBeenCalledWith("你好");
    cleanup();
    render(Composer, { ...actions, draft: "  " });
    await fireEvent.keyDown(screen.getByTestId("question"), { key: "Enter" });
    expect(actions.send).toHaveBeenCalledTimes(1);
  });
  it("stops by Esc while an answer grows", async () => {
    render(Composer, { ...actions, busy: true, draft: "x" });
    await fireEvent.keyDown(screen.getByTestId("question"), { key: "Escape" });
    expect(actions.stop).toHaveBeenCalled();
  });
});

describe("tokens", () => {
  it("are marked by a word, not only by colour", () => {
    const piece = (text: string, kind: "learned" | "read" | "cut", special = false) => ({ id: 1, text, kind, special });
    const pieces = [piece("<s>", "read", true), piece("a", "read"), piece("b", "learned"), piece("c", "cut")];
    const { container } = render(TokenText, { pieces });
    expect([...container.querySelectorAll(".kind")].map((each) => each.textContent)).toEqual([
      "read",
      "learned",
      "cut",
    ]);
    expect(container.querySelectorAll(".special")).toHaveLength(1);
  });
});

describe("an upload", () => {
  class Request {
    static last: Request;
    upload: { onprogress?: (event: object) => void } = {};
    status = 0;
    responseText = "";
    sent: File | null = null;
    method = "";
    address = "";
    onload = (): void => {};
    onabort = (): void => {};
    onerror = (): void => {};
    headers: Record<string, string> = {};
    constructor() {
      Request.last = this;
    }
    open(method: string, address: string): void {
      [this.method, this.address] = [method, address];
    }
    setRequestHeader(name: string, value: string): void {
      this.headers[name] = value;
    }
    send(file: File): void {
      this.sent = file;
    }
    abort(): void {
      this.onabort();
    }
  }
  const done = vi.fn();
  const choose = (file: File): Promise<boolean> =>
    fireEvent.change(screen.getByTestId("upload-file"), { target: { files: [file] } }) as Promise<boolean>;

  beforeEach(() => {
    vi.stubGlobal("XMLHttpRequest", Request);
    done.mockClear();
    render(Upload, { most: 100, done });
  });
  afterEach(() => vi.unstubAllGlobals());

  it("is refused before a byte is sent where that can be told", async () => {
    await choose(new File(["x"], "run.exe"));
    expect(screen.getByTestId("problems").textContent).toContain("run.exe is of no type");
    await choose(new File(["x".repeat(200)], "big.jsonl"));
    expect(screen.getByTestId("problems").textContent).toContain("at most 100 B");
    await choose(new File([], "empty.csv"));
    expect(screen.getByTestId("problems").textContent).toContain("empty.csv is empty");
    expect(Request.last?.sent ?? null).toBeNull();
  });

  it("sends the file as the body, and tells how far it is", async () => {
    const file = new File(["{}"], "my chats.jsonl");
    await choose(file);
    expect(Request.last).toMatchObject({ method: "PUT", address: "/api/data/uploads/my%20chats.jsonl", sent: file });
    expect(Request.last.headers["X-Luthier"]).toBe("1");
    Request.last.upload.onprogress?.({ lengthComputable: true, loaded: 1, total: 2 });
    await vi.waitFor(() => expect(screen.getByRole("progressbar").getAttribute("aria-valuenow")).toBe("50"));
    Object.assign(Request.last, { status: 200, responseText: '{"name":"my-chats.jsonl"}' });
    Request.last.onload();
    await vi.waitFor(() => expect(done).toHaveBeenCalledWith({ name: "my-chats.jsonl" }));
  });

  it("can be cut off without a complaint; a refusal is shown in the server's words", async () => {
    await choose(new File(["{}"], "a.jsonl"));
    await fireEvent.click(screen.getByTestId("upload-cancel"));
    await vi.waitFor(() => expect(screen.getByTestId("upload-choose")).toBeTruthy());
    expect(screen.queryByTestId("problems")).toBeNull();

    await choose(new File(["{}"], "b.jsonl"));
    const responseText = JSON.stringify({ error: { code: "upload_disk", message: "no room for b.jsonl" } });
    Object.assign(Request.last, { status: 507, responseText });
    Request.last.onload();
    await vi.waitFor(() => expect(screen.getByTestId("problems").textContent).toContain("no room for b.jsonl"));
    expect(done).not.toHaveBeenCalled();
  });
});

describe("results", () => {
  it("show values, intervals and what they prove, and call models by their names", () => {
    const facts = { value: 0.5, interval: [0.4, 0.6] as [number, number], rows: 40, better: "higher" as const };
    const base = {
      model: "base /m/tiny",
      measures: { "generate/exact_match": facts },
      against: null,
      differences: {},
      notes: [],
    };
    const difference = { value: 0.2, interval: [0.1, 0.3] as [number, number], rows: 40 };
    const tuned = {
      ...base,
      model: "/r/run",
      differences: { "generate/exact_match": difference },
      notes: ["/r/run: half was cut"],
    };
    render(Results, { run: "", name: "", models: [base, tuned] });
    const text = screen.getByTestId("results").textContent ?? "";
    for (const part of [
      "Exact answers",
      "base tiny",
      "0.400 to 0.600",
      "+0.200",
      "+0.100 to +0.300",
      "better",
      "run: half was cut",
    ])
      expect(text).toContain(part);
    expect(text).not.toContain("/m/tiny");
  });
});

describe("a verification", () => {
  it("is open where it failed, with each check in words", () => {
    const checks = [
      { name: "tokenizer", result: "ok" as const, found: "same", limit: "equal", numbers: { strings: 200 } },
      { name: "distance", result: "failed" as const, found: "too far", limit: "0.01", numbers: { kl: 0.5 } },
      { name: "llama.cpp", result: "not done" as const, found: "not here", limit: "", numbers: {} },
    ];
    render(Report, { report: { subject: "a.gguf.unverified", failed: true, checks } });
    const panel = screen.getByTestId("report") as HTMLDetailsElement;
    expect(panel.open).toBe(true);
    expect(panel.textContent).toContain("1 ok, 1 failed, 1 not done");
    expect(panel.textContent).toContain("kl 0.5");
  });
});
