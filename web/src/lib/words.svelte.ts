/** Words of the page in two languages. Every area has its own file; a test holds their keys equal. */

export type Language = "en" | "zh";
type Area = Record<string, string>;
type Book = { en: Area; zh: Area };

const files = import.meta.glob<Book>("../words/*.ts", { eager: true });
const books: Record<string, Book> = Object.fromEntries(
  Object.entries(files).map(([path, book]) => [path.replace(/^.*\/|\.ts$/g, ""), { en: book.en, zh: book.zh }]),
);

function preferred(): Language {
  const kept = localStorage.getItem("language");
  if (kept === "en" || kept === "zh") return kept;
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

let chosen = $state<Language>(preferred());

export const language = {
  get now(): Language {
    return chosen;
  },
  choose(next: Language): void {
    chosen = next;
    localStorage.setItem("language", next);
    document.documentElement.lang = next;
  },
};
document.documentElement.lang = language.now;

/** The text of `area.key`, with {names} replaced. A key without words is shown as it is, which the tests notice. */
export function t(key: string, values: Record<string, string | number> = {}): string {
  const dot = key.indexOf(".");
  const text = books[key.slice(0, dot)]?.[chosen][key.slice(dot + 1)] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

export const allBooks = (): Record<string, Book> => books;
