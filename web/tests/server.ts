/** A real `luthier ui` on a free port, with folders of its own. */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

export const PYTHON = resolve(import.meta.dirname, "../../.venv/bin/python");
const STARTED = /http:\/\/\S+#token=\S+/;

export class Server {
  readonly folder = mkdtempSync(join(tmpdir(), "luthier-page-"));
  readonly runs = join(this.folder, "runs");
  readonly data = join(this.folder, "data");
  #child: ChildProcess | null = null;
  #port = 0;
  said = "";
  link = "";

  constructor(
    private readonly options: string[] = [],
    private readonly caches: { sharedCache?: boolean } = {},
  ) {
    mkdirSync(this.data);
    mkdirSync(join(this.folder, "models"));
  }

  /** Start, or start again on the same port and folders. */
  async start(): Promise<this> {
    const words = ["-m", "luthier", "ui", "--no-browser", "--port", String(this.#port), "--runs", this.runs];
    words.push(
      "--data",
      this.data,
      "--models",
      join(this.folder, "models"),
      "--token-file",
      join(this.folder, "token"),
      ...this.options,
    );
    const child = spawn(PYTHON, words, {
      env: {
        ...process.env,
        HF_HUB_OFFLINE: "1",
        ...(!this.caches.sharedCache && { LUTHIER_CACHE: join(this.folder, "cache") }),
      },
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.#child = child;
    this.said = "";
    await new Promise<void>((done, failed) => {
      const hear = (piece: Buffer) => {
        this.said += piece.toString();
        const found = STARTED.exec(this.said);
        if (found) {
          this.link = found[0];
          done();
        }
      };
      child.stdout.on("data", hear);
      child.stderr.on("data", hear);
      child.on("exit", (code) => failed(new Error(`luthier ui ended with ${code}: ${this.said}`)));
    });
    this.#port = Number(new URL(this.link).port);
    return this;
  }

  get origin(): string {
    return new URL(this.link).origin;
  }

  /** What lets somebody in now: it may have been changed since the link was printed. */
  get token(): string {
    return readFileSync(join(this.folder, "token"), "utf-8").trim();
  }

  /** A file of a run's folder. */
  file(run: string, name: string): string {
    return join(this.runs, run, name);
  }

  /** What a run's folder says about it. */
  status(run: string): { state: string; step: number; pid: number } {
    return JSON.parse(readFileSync(this.file(run, "status.json"), "utf-8")) as ReturnType<Server["status"]>;
  }

  /** Steps whose loss a run has written down, in the order of the file. */
  steps(run: string): number[] {
    return readFileSync(this.file(run, "events.jsonl"), "utf-8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as { kind: string; step: number })
      .filter(({ kind }) => kind === "train")
      .map(({ step }) => step);
  }

  /** Ask the interface as a script does. */
  async ask<T>(method: string, path: string, body?: unknown): Promise<T> {
    const reply = await fetch(`${this.origin}/api${path}`, {
      method,
      headers: { Authorization: `Bearer ${this.token}`, "Content-Type": "application/json", "X-Luthier": "1" },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    });
    if (!reply.ok) throw new Error(`${method} ${path}: ${reply.status} ${await reply.text()}`);
    return (await reply.json()) as T;
  }

  /** End the process as a power cut would, and wait until it is gone. */
  async kill(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    const child = this.#child;
    this.#child = null;
    if (!child || child.exitCode !== null) return;
    child.removeAllListeners("exit");
    const gone = new Promise((done) => child.once("exit", done));
    child.kill(signal);
    await gone;
  }

  /** Stop what still runs, the server, and take the folders away. */
  async close(): Promise<void> {
    if (this.#child) {
      const { jobs } = await this.ask<{ jobs: { id: string; state: string }[] }>("GET", "/jobs");
      for (const job of jobs) {
        if (["starting", "running", "stopping"].includes(job.state)) {
          await this.ask("POST", `/jobs/${job.id}/action`, { action: "kill" }).catch(async (error: unknown) => {
            // It may have ended in between.
            const { state } = await this.ask<{ state: string }>("GET", `/jobs/${job.id}`);
            if (state !== "done") throw error;
          });
        }
      }
      await this.kill("SIGTERM");
    }
    rmSync(this.folder, { recursive: true, force: true });
  }
}
