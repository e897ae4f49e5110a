/** Rows as text: short for the list, whole for the one that is looked at. Never more than asked for is made. */

const VALUE = 160;
export const WHOLE = 20_000;

/** A row in one line of about `most` characters, however large it is. */
export function brief(row: unknown, most = 400): string {
  if (typeof row !== "object" || row === null) return short(row);
  const said: string[] = [];
  let length = 0;
  for (const [key, value] of Object.entries(row)) {
    const part = Array.isArray(row) ? short(value) : `${key}: ${short(value)}`;
    said.push(part);
    length += part.length;
    if (length > most) break;
  }
  return said.join("  ·  ").slice(0, most);
}

function short(value: unknown): string {
  if (typeof value === "string") return flat(value);
  if (Array.isArray(value)) return value.slice(0, 4).map(turn).join(" / ") + (value.length > 4 ? " / …" : "");
  if (typeof value === "object" && value !== null) return turn(value);
  return String(value);
}

const flat = (text: string): string =>
  text.slice(0, VALUE).replace(/\r\n|\r|\n/g, " ⏎ ") + (text.length > VALUE ? "…" : "");

/** A turn of a conversation by what it says, anything else by its first values. */
function turn(value: unknown): string {
  if (typeof value !== "object" || value === null) return flat(String(value));
  const fields = Object.entries(value).slice(0, 4);
  return fields
    .map(([, each]) => flat(typeof each === "string" ? each : (JSON.stringify(each)?.slice(0, VALUE) ?? "")))
    .join(" ");
}

export interface Part {
  name: string;
  text: string;
  /** Characters that `text` leaves out. */
  left: number;
}

/** The values of a row, each as text of at most `most` characters. */
export function whole(row: unknown, most = WHOLE): Part[] {
  const fields: [string, unknown][] =
    typeof row === "object" && row !== null && !Array.isArray(row) ? Object.entries(row) : [["", row]];
  return fields.map(([name, value]) => {
    const text = typeof value === "string" ? value : (JSON.stringify(value, null, 2) ?? "");
    return { name, text: text.slice(0, most), left: Math.max(0, text.length - most) };
  });
}
