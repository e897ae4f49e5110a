/** Requests to the interface. A reply that is no success becomes a `Refusal` with all that the server said. */
import { language } from "../words.svelte";
import type { Problem } from "./shapes";

export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly problems: Problem[],
  ) {
    super(problems.map((each) => each.message).join("\n"));
  }

  /** Whether the server was not reached at all. */
  get away(): boolean {
    return this.status === 0;
  }
}

type Query = Record<string, string | number | boolean | null | undefined>;

interface Options {
  query?: Query;
  body?: unknown;
  signal?: AbortSignal;
  /** A file that holds a report is translated where it is asked for as this, and not where it is downloaded. */
  accept?: "application/json";
}

/** Path below /api with its query; what is null or undefined is left out. */
export function address(path: string, query: Query = {}): string {
  const given = Object.entries(query).filter((each): each is [string, string | number | boolean] => each[1] != null);
  const text = new URLSearchParams(given.map(([key, value]) => [key, String(value)])).toString();
  return `/api${path}${text ? `?${text}` : ""}`;
}

/** What to do when a session has ended; set by the application. */
export const session = { ended: () => {} };

export async function request<T>(method: string, path: string, options: Options = {}): Promise<T> {
  const reply = await send(method, path, { ...options, accept: "application/json" });
  return (await reply.json()) as T;
}

export const get = <T>(path: string, query?: Query, signal?: AbortSignal): Promise<T> =>
  request<T>("GET", path, { ...(query && { query }), ...(signal && { signal }) });
export const post = <T>(path: string, body: unknown = {}, query?: Query): Promise<T> =>
  request<T>("POST", path, { body, ...(query && { query }) });
export const patch = <T>(path: string, body: unknown): Promise<T> => request<T>("PATCH", path, { body });
export const put = <T>(path: string, body: unknown): Promise<T> => request<T>("PUT", path, { body });
export const remove = <T>(path: string, query?: Query): Promise<T> =>
  request<T>("DELETE", path, query ? { query } : {});

/** In which language to answer. Whatever asks within an effect asks again when another one is chosen. */
export const accepted = (): string => (language.now === "zh" ? "zh-CN" : "en");

/** The reply itself, for streams. Throws Refusal. */
export async function send(method: string, path: string, options: Options = {}): Promise<Response> {
  const headers: Record<string, string> = {
    "Accept-Language": accepted(),
    ...(options.accept && { Accept: options.accept }),
    ...(method !== "GET" && { "X-Luthier": "1" }),
  };
  if (options.body !== undefined) headers["Content-Type"] = "application/json";
  let reply: Response;
  try {
    reply = await fetch(address(path, options.query), {
      method,
      headers,
      credentials: "same-origin",
      ...(options.body !== undefined && { body: JSON.stringify(options.body) }),
      ...(options.signal && { signal: options.signal }),
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Refusal(0, [{ code: "away", message: "", field: null, place: null }]);
  }
  if (reply.ok) return reply;
  const refusal = await refusalOf(reply);
  if (reply.status === 401) session.ended();
  throw refusal;
}

async function refusalOf(reply: Response): Promise<Refusal> {
  try {
    const { error, problems } = (await reply.json()) as { error: Problem; problems?: Problem[] };
    return new Refusal(reply.status, problems?.length ? problems : [error]);
  } catch {
    return new Refusal(reply.status, [
      { code: `http_${reply.status}`, message: `HTTP ${reply.status}`, field: null, place: null },
    ]);
  }
}

/** Problems of whatever was thrown. */
export function problemsOf(thrown: unknown): Problem[] {
  if (thrown instanceof Refusal) return thrown.problems;
  return [
    { code: "page", message: thrown instanceof Error ? thrown.message : String(thrown), field: null, place: null },
  ];
}

/** An id under which a start may be asked for again without starting twice. */
export const newRequestId = (): string => crypto.randomUUID();
