/** Where the page stands: path and query of the address bar, so that reload and share keep it. */

export interface Place {
  path: string[];
  query: URLSearchParams;
}

const read = (): Place => ({
  path: location.pathname.split("/").filter(Boolean).map(decodeURIComponent),
  query: new URLSearchParams(location.search),
});

let now = $state.raw<Place>(read());
window.addEventListener("popstate", () => (now = read()));

export const place = {
  get path(): string[] {
    return now.path;
  },
  get query(): URLSearchParams {
    return now.query;
  },
};

/** Go to an address of the page; `replace` leaves no step behind for the back button. */
export function go(to: string, replace = false): void {
  history[replace ? "replaceState" : "pushState"](null, "", to);
  now = read();
}

/** Change parts of the query; null takes a part away. */
export function setQuery(changes: Record<string, string | null>, replace = true): void {
  const query = new URLSearchParams(location.search);
  for (const [key, value] of Object.entries(changes)) value === null ? query.delete(key) : query.set(key, value);
  const text = query.toString();
  go(location.pathname + (text ? `?${text}` : ""), replace);
}

/** Put on links: a plain click stays inside the page. */
export function link(node: HTMLAnchorElement): { destroy: () => void } {
  const click = (event: MouseEvent) => {
    if (event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    go(node.pathname + node.search);
  };
  node.addEventListener("click", click);
  return { destroy: () => node.removeEventListener("click", click) };
}
