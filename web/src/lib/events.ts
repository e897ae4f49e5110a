/**
 * The stream of one run. A connection begins where the curves end (`begin` says where that is), so that no point comes
 * twice or is missing; the browser itself goes on after short faults, by the number of the last event. A hidden tab has
 * no connection: a browser has six for a server, and nobody looks.
 */
import { address } from "./api/client";
import type { RunEvent } from "./curves";

export type Connection = "connecting" | "open" | "lost" | "ended" | "asleep";

export interface Hearing {
  /** Fetch what happened so far; the number of its last event. "over": there is no such run; null: try again later. */
  begin(): Promise<number | "over" | null>;
  event(event: RunEvent): void;
  status(status: Record<string, unknown>): void;
  /** Asked when the server closes the stream for good: whether nothing more will come. */
  ended(): Promise<boolean>;
  connection(state: Connection): void;
}

export interface Stream {
  /** Begin anew from what the server has. */
  again(): void;
  close(): void;
}

const LONGEST_WAIT = 15_000;

export function follow(id: string, hearing: Hearing): Stream {
  let source: EventSource | null = null;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let failures = 0;
  let turn = 0;

  function stop(): void {
    turn++;
    clearTimeout(timer);
    source?.close();
    source = null;
  }

  function later(): void {
    hearing.connection("lost");
    clearTimeout(timer);
    timer = setTimeout(() => void connect(), Math.min(LONGEST_WAIT, 1000 * 2 ** failures++));
  }

  async function connect(): Promise<void> {
    stop();
    const mine = turn;
    if (document.hidden) return hearing.connection("asleep");
    hearing.connection("connecting");
    const after = await hearing.begin();
    if (mine !== turn) return;
    if (after === null) return later();
    if (after === "over") return hearing.connection("ended");
    const opened = (source = new EventSource(address(`/runs/${encodeURIComponent(id)}/events`, { after })));
    opened.onopen = () => {
      failures = 0;
      hearing.connection("open");
    };
    opened.onmessage = (message: MessageEvent<string>) => hearing.event(JSON.parse(message.data) as RunEvent);
    opened.addEventListener("status", (message) =>
      hearing.status(JSON.parse((message as MessageEvent<string>).data) as Record<string, unknown>),
    );
    opened.onerror = () => void broken(opened, mine);
  }

  async function broken(opened: EventSource, mine: number): Promise<void> {
    if (mine !== turn) return;
    if (opened.readyState !== EventSource.CLOSED) return hearing.connection("lost");
    const ended = await hearing.ended();
    if (mine !== turn) return;
    if (ended) {
      stop();
      hearing.connection("ended");
    } else later();
  }

  const seen = () => void connect();
  document.addEventListener("visibilitychange", seen);
  void connect();
  return {
    again: () => void connect(),
    close() {
      stop();
      document.removeEventListener("visibilitychange", seen);
    },
  };
}
