/**
 * What changes on the server, for every part of the page. One connection a browser: the tab that holds a lock listens
 * and tells the others (browsers allow six connections to a host).
 */
export interface Change {
  kind: "jobs" | "runs" | "queue" | "serving" | "connection";
  id: string;
  /** It is further than it was, and the same otherwise. */
  grown?: boolean;
}
type Listener = (change: Change) => void;

const listeners = new Set<Listener>();
const channel = "BroadcastChannel" in window ? new BroadcastChannel("luthier-changes") : null;

function hear(change: Change): void {
  for (const each of listeners) each(change);
}
if (channel) channel.onmessage = (event: MessageEvent<Change>) => hear(event.data);

function tell(change: Change): void {
  channel?.postMessage(change);
  hear(change);
}

let begun = false;

/** Begin to listen; called once the session is there. */
export function listen(): void {
  if (begun) return;
  begun = true;
  const open = () => {
    const source = new EventSource("/api/changes");
    for (const kind of ["jobs", "runs", "queue", "serving"] as const) {
      source.addEventListener(kind, (event) => tell(JSON.parse((event as MessageEvent<string>).data) as Change));
    }
    source.onopen = () => tell({ kind: "connection", id: "open" });
    source.onerror = () => {
      tell({ kind: "connection", id: "lost" });
      if (source.readyState === EventSource.CLOSED) setTimeout(open, 2000);
    };
    return new Promise<never>(() => {});
  };
  if (navigator.locks) void navigator.locks.request("luthier-changes", open);
  else void open();
}

/** Hear of changes until the returned function is called. */
export function onChange(listener: Listener): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}
