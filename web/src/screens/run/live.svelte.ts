/** A run as the page knows it: what was asked for, and what the stream of its events adds. */
import { get, problemsOf, Refusal } from "../../lib/api/client";
import type { Curves, Job, Problem, RunDetail } from "../../lib/api/shapes";
import { onChange } from "../../lib/changes";
import { RunCurves, timeLeft, type RunEvent, type XAxis } from "../../lib/curves";
import { follow, type Connection, type Stream } from "../../lib/events";
import { paced } from "../../lib/pace";
import { Resource } from "../../lib/resource.svelte";
import { isAtWork } from "../runs/states";

const PREPARING = new Set(["queued", "starting"]);
/** About 2,000 buckets of two points. */
export const POINTS = 4000;
/**
 * Milliseconds between two looks of the page. Whoever watches has the processor of what trains in most cases, and a
 * browser without a graphics card draws on it; steps that take longer are shown at once.
 */
export const BEAT = 2000;
/** So often all about a run is asked for, for what is not told; less often while its stream tells the rest. */
const LOOK_EVERY = 5000;
const LOOKS_WHILE_TOLD = 3;

/** Whether it has a folder; a run that waits has settings and nothing else. */
export const hasBegun = (detail: RunDetail): boolean => Object.keys(detail.status).length > 0;

export class LiveRun {
  readonly path: string;
  readonly detail: Resource<RunDetail>;
  connection = $state<Connection>("connecting");
  /** Grows when the curves change, at most once a beat. */
  version = $state(0);
  step = $state(0);
  total = $state<number | null>(null);
  /** The last line about training since the curves were fetched. */
  latest = $state.raw<RunEvent | null>(null);
  /** What its process says that it does, before the first step. */
  job = $state.raw<Job | null>(null);
  gone = $state(false);
  problems = $state.raw<Problem[]>([]);
  /** Milliseconds: when the server was heard last, and when `detail` came. */
  heardAt = $state(Date.now());
  detailAt = $state(Date.now());
  curves: RunCurves | null = null;

  #stream: Stream | null = null;
  #refused = 0;
  #stateInFile = "";
  /** What the stream has said, and when, for the next beat. */
  #heard: { at: number; step: number; total: number | null; train: RunEvent | null } = {
    at: 0,
    step: 0,
    total: null,
    train: null,
  };
  readonly #ends: (() => void)[] = [];
  readonly #shown = paced(() => this.#show(), BEAT);
  readonly #look = paced(() => void this.refresh(), 1000);
  readonly #anew = paced(() => this.#stream?.again(), 4000);

  constructor(
    readonly id: string,
    private axis: XAxis,
    /** Names of metrics that are shown, of those that there are. */
    private readonly wanted: (names: string[]) => string[],
  ) {
    this.path = `/runs/${encodeURIComponent(id)}`;
    this.detail = new Resource((signal) => this.#ask(signal));
  }

  /** Begin to listen; the returned function ends it. */
  listen(): () => void {
    this.#stream = follow(this.id, {
      begin: () => this.#begin(),
      event: (event) => this.take(event),
      status: (status) => this.#status(status),
      ended: () => this.#ended(),
      connection: (state) => (this.connection = state),
    });
    // What changes by itself is told; a folder that somebody takes away is not.
    let looks = 0;
    const poll = setInterval(() => {
      // A look that takes long is waited for: another one would begin it anew.
      if (this.gone || this.detail.loading) return;
      if (!this.#isTold || ++looks % LOOKS_WHILE_TOLD === 0) this.#look.ask();
    }, LOOK_EVERY);
    this.#ends.push(
      onChange(({ kind, id, grown }) => {
        const mine = (kind === "runs" && id === this.id) || (kind === "jobs" && id === this.detail.value?.job);
        if (mine && !(grown && this.#isTold)) this.#look.ask();
      }),
      () => clearInterval(poll),
      () => this.#stream?.close(),
      this.#shown.stop,
      this.#look.stop,
      this.#anew.stop,
    );
    return () => this.#ends.forEach((end) => end());
  }

  /** Fetch what is known about it again; the curves go on. */
  async refresh(): Promise<void> {
    const found = await this.detail.load();
    if (!found) return;
    if (found.job && (PREPARING.has(found.state) || (isAtWork(found.state) && !found.step)))
      await this.#askJob(found.job);
    else this.job = null;
    if (this.connection === "ended" && isAtWork(found.state) && hasBegun(found)) this.#stream?.again();
  }

  /** Begin anew, with other metrics or another x. */
  reload(axis: XAxis): void {
    this.axis = axis;
    this.#stream?.again();
  }

  /** The newest value of a metric: null where it was not a number, undefined where there is none. */
  value(name: string): number | null | undefined {
    const said = this.latest?.[name];
    return typeof said === "number" || said === null ? said : this.curves?.last(name);
  }

  get secondsLeft(): number | null {
    return isAtWork(this.detail.value?.state ?? "")
      ? timeLeft(this.curves?.durations ?? [], this.step, this.total)
      : null;
  }

  /** Take in one line of the stream. */
  take(event: RunEvent): void {
    this.#heard.at = Date.now();
    const taken = this.curves?.add(event) ?? "known";
    if (taken === "known") return;
    if (event.kind === "train") {
      this.#heard.train = event;
      this.#heard.step = Math.max(this.#heard.step, event.step ?? 0);
    }
    if (event.kind === "begin" && typeof event["total"] === "number") this.#heard.total = event["total"];
    if (event.kind === "checkpoint" || event.kind === "done") this.#look.ask();
    this.#shown.ask();
    if (taken !== "reload") return;
    this.#refused = event.seq;
    if (event.kind === "train" || event.kind === "eval") this.#anew.ask();
    else this.#stream?.again();
  }

  /** Its stream says by itself how far it is; of what comes before the first step only its job says that. */
  get #isTold(): boolean {
    return this.connection === "open" && this.job === null;
  }

  /** Let the page see what was heard. */
  #show(): void {
    const { at, step, total, train } = this.#heard;
    this.heardAt = Math.max(this.heardAt, at);
    this.step = Math.max(this.step, step);
    this.total = total ?? this.total;
    this.latest = train;
    if (train) this.job = null;
    this.version++;
  }

  async #ask(signal: AbortSignal): Promise<RunDetail> {
    try {
      const found = await get<RunDetail>(this.path, {}, signal);
      this.gone = false;
      this.heardAt = this.detailAt = Date.now();
      this.step = Math.max(this.step, found.step);
      this.total = found.total ?? this.total;
      return found;
    } catch (error) {
      if (error instanceof Refusal && error.status === 404) this.gone = true;
      throw error;
    }
  }

  async #askJob(id: string): Promise<void> {
    try {
      this.job = await get<Job>(`/jobs/${encodeURIComponent(id)}`);
    } catch {
      this.job = null;
    }
  }

  async #begin(): Promise<number | "over" | null> {
    await this.refresh();
    const found = this.detail.value;
    if (this.gone || (found && !hasBegun(found))) return "over";
    if (!found || this.detail.away || this.detail.problems.length) return null;
    try {
      const names = this.wanted(found.metrics);
      const from = Math.max(0, found.step - 60);
      const [reply, tail] = await Promise.all([
        get<Curves>(`${this.path}/curves`, { names: names.join(","), x: this.axis, points: POINTS }),
        get<Curves>(`${this.path}/curves`, { names: "seconds", x: "step", from, points: POINTS }),
      ]);
      const curves = new RunCurves(this.axis, reply, found.metrics);
      curves.forgive(this.#refused);
      curves.durations = (tail.curves[0]?.y ?? []).filter((value) => value !== null).slice(-50);
      this.curves = curves;
      this.#heard.train = null;
      this.problems = [];
      const ends = this.axis === "step" ? [...curves.lines.values()].map(({ x }) => x.at(-1) ?? 0) : [];
      this.step = Math.max(found.step, ...ends);
      this.#show();
      return curves.lastSeq;
    } catch (error) {
      if (error instanceof Refusal && error.away) return null;
      // Its folder went away just now: the next look at it tells.
      if (error instanceof Refusal && error.status === 404) return "over";
      this.problems = problemsOf(error);
      return null;
    }
  }

  #status(status: Record<string, unknown>): void {
    this.#heard.at = Date.now();
    if (typeof status["step"] === "number") this.#heard.step = Math.max(this.#heard.step, status["step"]);
    if (typeof status["total"] === "number") this.#heard.total = status["total"];
    this.#shown.ask();
    const state = String(status["state"] ?? "");
    if (state !== this.#stateInFile) this.#look.ask();
    this.#stateInFile = state;
  }

  async #ended(): Promise<boolean> {
    await this.refresh();
    return this.gone || (!this.detail.away && !isAtWork(this.detail.value?.state ?? "running"));
  }
}
