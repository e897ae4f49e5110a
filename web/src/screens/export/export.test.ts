import { describe, expect, it } from "vitest";
import { download, exportsOf, freeName, quoted, uses } from "./files";
import { needs, offered, total } from "./sizes";

const file = (path: string, bytes = 10, modified = 1) => ({ path, bytes, modified });

describe("sizes", () => {
  const facts = { parameters: 8_000_000, bytes: 16_100_000 };
  it("are those of every file, and of the one that is there meanwhile", () => {
    const found = needs({ format: "gguf", dtype: "", forms: ["q8_0", "q4_k_m"] }, facts) ?? [];
    expect(found).toEqual([
      { name: "gguf q8_0", bytes: 8_500_000, meanwhile: false },
      { name: "gguf q4_k_m", bytes: 4_900_000, meanwhile: false },
      { name: "gguf f16", bytes: 16_000_000, meanwhile: true },
    ]);
    expect(total(found)).toBe(Math.ceil((8.5e6 + 4.9e6 + 16e6) * 1.05));
  });
  it("keep the number format of the base unless another one is chosen", () => {
    expect(needs({ format: "merged", dtype: "", forms: [] }, facts)?.[0]?.bytes).toBe(16_100_000);
    expect(needs({ format: "merged", dtype: "float32", forms: [] }, facts)?.[0]?.bytes).toBe(32_000_000);
  });
  it("take the first form for ollama only", () => {
    const found = needs({ format: "ollama", dtype: "", forms: ["q8_0", "f16"] }, facts);
    expect(found?.map((each) => each.name)).toEqual(["ollama q8_0"]);
  });
  it("are not made up", () => {
    expect(needs({ format: "merged", dtype: "", forms: [] }, { parameters: null, bytes: 5 })).toBeNull();
    expect(needs({ format: "adapter", dtype: "", forms: [] }, { parameters: null, bytes: null })).toEqual([]);
    expect(offered("adapter", "full")).toBe(false);
    expect(offered("gguf_adapter", "lora")).toBe(true);
  });
});

describe("exports", () => {
  const files = [
    file("config.yaml"),
    file("export/gguf/m-Q8_0.gguf", 500, 5),
    file("export/gguf/m-Q4_0.gguf.unverified", 300, 5),
    file("export/gguf/verify.json", 5, 5),
    file("export/merged/config.json", 5, 9),
    file("export/merged/model.safetensors", 900, 9),
    file("export/.tmp-merged-x/merged/model.safetensors", 900, 9),
  ];
  it("are what lies in their folders, newest first, and say what did not pass", () => {
    const found = exportsOf(files);
    expect(found.map((each) => [each.folder, each.bytes, each.unverified])).toEqual([
      ["merged", 905, false],
      ["gguf", 805, true],
    ]);
    expect(found[1]?.report?.path).toBe("export/gguf/verify.json");
    expect(freeName("merged", found)).toBe("merged-2");
    expect(freeName("ollama", found)).toBe("ollama");
  });
  it("of all forms of a checkpoint are told apart", () => {
    const found = exportsOf([file("export/checkpoint-5/merged/config.json"), file("export/checkpoint-5/gguf/m.gguf")]);
    expect(found.map((each) => each.folder).sort()).toEqual(["checkpoint-5/gguf", "checkpoint-5/merged"]);
    expect(freeName("checkpoint-5", found)).toBe("checkpoint-5-2");
  });
  it("have commands, but not those that did not pass", () => {
    const [merged, gguf] = exportsOf(files);
    if (!merged || !gguf) throw new Error("no exports");
    expect(uses(merged, "/r", "a b", "base").map((each) => each.command)).toContain(
      "vllm serve '/r/a b/export/merged'",
    );
    expect(uses(gguf, "/r", "a", "base").map((each) => each.what)).toEqual(["folder"]);
    const [ollama] = exportsOf([file("export/ollama/Modelfile"), file("export/ollama/My-Q8_0.gguf")]);
    if (!ollama) throw new Error("no export");
    expect(uses(ollama, "/r", "My Run", "base")[1]?.command).toBe(
      "cd '/r/My Run/export/ollama' && ollama create my-run -f Modelfile && ollama run my-run",
    );
  });
  it("are quoted for a shell", () => {
    expect(quoted("/a/b-1.gguf")).toBe("/a/b-1.gguf");
    expect(quoted("it's; $(rm)")).toBe(`'it'"'"'s; $(rm)'`);
    expect(download("r 1", "export/a b/c#.gguf")).toBe("/api/runs/r%201/files/export/a%20b/c%23.gguf");
  });
});
