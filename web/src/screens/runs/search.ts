/** What the address says about the list of runs: which ones, and in which order. */

const FILTERS = ["q", "state", "objective", "model", "tag", "since", "until", "archived"];
/** Parts of the address that a view keeps. */
export const ASKED = [...FILTERS, "sort", "descending"];

export const isFiltered = (query: URLSearchParams): boolean => FILTERS.some((key) => query.get(key));
export const sortOf = (query: URLSearchParams): string => query.get("sort") ?? "updated";
export const isDescending = (query: URLSearchParams): boolean => query.get("descending") !== "false";

/** What the server is asked: days are those of whoever looks, wherever the server is. */
export function question(query: URLSearchParams): Record<string, string | boolean | null> {
  return {
    ...Object.fromEntries(FILTERS.map((key) => [key, query.get(key)])),
    since: midnight(query.get("since")),
    until: midnight(query.get("until"), 1),
    archived: query.get("archived") ?? "false",
    sort: sortOf(query),
    descending: isDescending(query),
  };
}

/** "2026-03-31" -> seconds at the midnight before it, or so many days later; what is no day stays as it is. */
function midnight(day: string | null, later = 0): string | null {
  const [y, m, d] =
    /^(\d{4})-(\d\d)-(\d\d)$/
      .exec(day ?? "")
      ?.slice(1)
      .map(Number) ?? [];
  if (y === undefined || m === undefined || d === undefined) return day;
  const isThere = new Date(y, m - 1, d).getMonth() === m - 1;
  return isThere ? String(new Date(y, m - 1, d + later).getTime() / 1000) : day;
}
