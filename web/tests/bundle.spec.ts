/** What is served: small, and the compressed files hold what the plain ones do. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { brotliDecompressSync } from "node:zlib";
import { expect, test } from "@playwright/test";

const FOLDER = join(import.meta.dirname, "../../src/luthier/server/static");
const MOST_BYTES = 150_000;

test("the page is below 150 kB compressed", () => {
  const names = readdirSync(FOLDER, { recursive: true, encoding: "utf-8" });
  const compressed = names.filter((name) => name.endsWith(".br"));
  expect(compressed.length).toBeGreaterThanOrEqual(3);
  const bytes = compressed.map((name) => readFileSync(join(FOLDER, name)).length);
  expect(bytes.reduce((sum, each) => sum + each, 0)).toBeLessThan(MOST_BYTES);
  for (const name of compressed) {
    const plain = readFileSync(join(FOLDER, name.slice(0, -3)));
    expect(brotliDecompressSync(readFileSync(join(FOLDER, name))).equals(plain), name).toBe(true);
  }
  expect(names.filter((name) => name.endsWith(".map"))).toEqual([]);
});
