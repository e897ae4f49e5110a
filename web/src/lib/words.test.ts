import { describe, expect, it } from "vitest";
import { allBooks } from "./words.svelte";

const sources = import.meta.glob(["../**/*.svelte", "../**/*.ts", "!../words/**", "!../**/*.test.ts"], {
  eager: true,
  query: "?raw",
  import: "default",
}) as Record<string, string>;
const books = allBooks();

describe("words", () => {
  it.each(Object.entries(books))("%s has the same keys and the same blanks in both languages", (_, book) => {
    expect(Object.keys(book.zh).sort()).toEqual(Object.keys(book.en).sort());
    for (const [key, text] of Object.entries(book.en)) {
      const blanks = (each: string) => [...each.matchAll(/\{(\w+)\}/g)].map(([, name]) => name).sort();
      expect(blanks(book.zh[key] ?? ""), key).toEqual(blanks(text));
      expect(book.zh[key]?.trim(), key).toBeTruthy();
    }
  });

  it("has every key that the page asks for", () => {
    const missing: string[] = [];
    for (const [path, text] of Object.entries(sources)) {
      for (const [, area, key] of text.matchAll(/\bt\(\s*["'`](\w+)\.([\w.-]+)["'`]/g)) {
        if (area && key && !(key in (books[area]?.en ?? {}))) missing.push(`${path}: ${area}.${key}`);
      }
    }
    expect(missing).toEqual([]);
  });

  it("is Chinese where it says so", () => {
    for (const [area, book] of Object.entries(books)) {
      const untranslated = Object.entries(book.zh).filter(
        ([key, text]) => text === book.en[key] && / /.test(text) && !/[\u4e00-\u9fff]/.test(text),
      );
      expect(untranslated, area).toEqual([]);
    }
  });

  it("has full punctuation beside Chinese letters", () => {
    const half = /[\u4e00-\u9fff][,;:?!()]|[,;?!()][\u4e00-\u9fff]/;
    for (const [area, book] of Object.entries(books)) {
      expect(
        Object.entries(book.zh).filter(([, text]) => half.test(text)),
        area,
      ).toEqual([]);
    }
  });
});
