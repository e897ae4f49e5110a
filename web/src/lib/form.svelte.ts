/**
 * The settings of a training that is being prepared, in two forms that follow each other: values of fields, and a text
 * of YAML. Whichever was touched last leads; the server reads it and tells the other one.
 */
import { newRequestId, problemsOf, Refusal, request } from "./api/client";
import type { ConfigLook, Estimate, NewJob, Problem, Values } from "./api/shapes";
import { keysOf, same, textWithoutSecrets, toYaml, valueOf, withoutSecrets, withValue } from "./fields";

const LOOK_AFTER = 250;
const ESTIMATE_AFTER = 1200;
const SAVE_AFTER = 300;

/** Settings that belong to one run and go along into no other. */
const OWN = ["train.output_dir", "train.run_name", "train.resume", "train.overwrite_output_dir"];

interface Draft {
  values: Values;
  text: string;
  leads: "form" | "text";
  name: string;
  notes: string;
  tags: string[];
  preset: { name: string; values: Values } | null;
  /** Request id of the start, so that two tabs with one draft start one training. */
  start: string;
}

interface Asked {
  values?: Values;
  yaml?: string;
}

export class TrainingForm {
  values = $state.raw<Values>({});
  text = $state("");
  leads = $state<"form" | "text">("form");
  /** A typed text that a change in the form has replaced. */
  replaced = $state<string | null>(null);
  look = $state.raw<ConfigLook | null>(null);
  looking = $state(false);
  /** What went wrong with asking; what is wrong with the settings stands in `look`. */
  failures = $state.raw<Problem[]>([]);
  away = $state(false);
  resolved = $state.raw<Values>({});
  estimate = $state.raw<Estimate | null>(null);
  estimating = $state(false);
  estimateFailures = $state.raw<Problem[]>([]);
  name = $state("");
  notes = $state("");
  tags = $state.raw<string[]>([]);
  preset = $state.raw<Draft["preset"]>(null);
  /** A run that goes on keeps its settings: they are only shown. */
  frozen = $state(false);
  /** Grows with every change of the settings. */
  revision = $state(0);
  #estimated = $state(-1);
  #timers: Record<string, ReturnType<typeof setTimeout>> = {};
  #aborts: Record<string, AbortController> = {};
  #aside: Record<string, Record<string, unknown>> = {};
  #unsaved = false;
  #start = { id: "", of: "" };

  constructor(private readonly draft: string) {}

  /** Whether the text leads and cannot be read at all, so that the fields show what was before it. */
  readonly unreadable = $derived(
    this.leads === "text" &&
      this.look !== null &&
      this.look.problems.length > 0 &&
      Object.keys(this.look.values ?? {}).length === 0,
  );
  /** Whether the fields cannot be edited now. */
  readonly locked = $derived(this.unreadable || this.frozen);
  readonly estimateIsOld = $derived(this.estimate !== null && this.#estimated !== this.revision);
  readonly tuning = $derived(String(this.values["tuning"]?.["name"] ?? this.resolved["tuning"]?.["name"] ?? "lora"));
  readonly objective = $derived(
    String(this.values["objective"]?.["name"] ?? this.resolved["objective"]?.["name"] ?? "sft"),
  );
  readonly empty = $derived(Object.keys(this.values).length === 0 && !this.text.trim());

  given(key: string): unknown {
    return valueOf(this.values, key);
  }

  problem(key: string): string {
    return (this.look?.problems ?? [])
      .filter((each) => each.field === key)
      .map((each) => each.message)
      .join("\n");
  }

  /** Where the value of a setting comes from: preset, form, default, or a place in the text. */
  source(key: string): string {
    const value = this.given(key);
    if (value === undefined) return this.look?.places?.[key] ?? "default";
    if (this.leads === "text") return this.look?.places?.[key] ?? "form";
    return this.preset && same(valueOf(this.preset.values, key), value) ? this.preset.name : "form";
  }

  set(key: string, value: unknown): void {
    this.setAll({ [key]: value });
  }

  setAll(changes: Record<string, unknown>): void {
    if (this.locked) return;
    let values = this.values;
    for (const [key, value] of Object.entries(changes)) values = withValue(values, key, value);
    this.#lead(values);
  }

  /** Take another name of a shelf; the settings of the one before are kept until it is taken again. */
  choose(section: "tuning" | "objective", name: string): void {
    if (this.locked || this[section] === name) return;
    this.#aside[`${section}.${this[section]}`] = this.values[section] ?? {};
    this.#lead({ ...this.values, [section]: { ...this.#aside[`${section}.${name}`], name } });
  }

  /** Take the values of a preset; those that another one set before go, unless somebody changed them. */
  take(name: string, preset: Values): void {
    if (this.locked) return;
    let values = this.values;
    for (const key of keysOf(this.preset?.values ?? {})) {
      const before = valueOf(this.preset?.values ?? {}, key);
      if (same(valueOf(values, key), before)) values = withValue(values, key, undefined);
    }
    for (const key of keysOf(preset)) values = withValue(values, key, valueOf(preset, key));
    this.preset = { name, values: preset };
    this.#lead(values);
  }

  /** The text of YAML was edited, or a file was dropped. */
  type(text: string): void {
    this.text = text;
    this.leads = "text";
    this.replaced = null;
    this.#changed();
  }

  /** Take the shortest text that means the same; the typed one can be brought back. */
  shorten(text: string): void {
    const before = this.text;
    this.type(text);
    this.replaced = before;
  }

  /** Go back from a text that cannot be read to what the fields show. */
  discard(): void {
    this.replaced = this.text;
    this.text = "";
    this.leads = "form";
    this.#changed();
  }

  bringBack(): void {
    if (this.replaced !== null) this.type(this.replaced);
  }

  /** Begin with settings of a run (the shortest that mean the same, without what is its own), an example or nothing. */
  async begin(from: { yaml?: string; values?: Values }): Promise<void> {
    this.preset = null;
    this.replaced = null;
    this.values = from.values ?? {};
    this.leads = from.yaml ? "text" : "form";
    this.text = from.yaml ?? "";
    this.estimate = null;
    this.#aside = {};
    this.#changed();
    if (!from.yaml) return;
    const look = await this.settle();
    if (look?.ok && look.yaml) {
      this.type(look.yaml);
      await this.settle();
    }
    if (!this.unreadable && OWN.some((key) => this.given(key) !== undefined)) {
      this.setAll(Object.fromEntries(OWN.map((key) => [key, undefined])));
      this.replaced = null;
    }
  }

  asked(): Asked {
    return this.leads === "text" ? { yaml: this.text } : { values: this.values };
  }

  /** Wait until the server has seen what stands here now. */
  async settle(): Promise<ConfigLook | null> {
    clearTimeout(this.#timers["look"]);
    return this.#look();
  }

  /** What to start. The same settings asked for again, here or in another tab, are the same start. */
  job(when: NonNullable<NewJob["when"]>, resume: string | null): NewJob {
    const { name, notes, tags } = this;
    const known = this.estimate !== null && !this.estimateIsOld;
    return {
      ...(resume === null && this.asked()),
      ...{ kind: "train", name: name.trim(), notes, tags, when, resume },
      options: known ? { memory_bytes: this.estimate?.peak_bytes } : {},
      request_id: `${this.#startId()}-${when}`,
    };
  }

  #startId(): string {
    const of = this.#content();
    if (this.#start.of !== of) this.#start = { id: newRequestId(), of };
    return this.#start.id;
  }

  #content(): string {
    return JSON.stringify([this.asked(), this.name.trim(), this.notes, this.tags]);
  }

  /** It has begun: another start is another one, and there is nothing to keep. */
  started(): void {
    this.#start = { id: "", of: "" };
    clearTimeout(this.#timers["save"]);
    this.#unsaved = false;
    localStorage.removeItem(this.draft);
  }

  /** Take up what was kept in the browser; false where there is nothing. */
  restore(): boolean {
    const kept = readDraft(this.draft);
    if (!kept) return false;
    const { start, ...draft } = kept;
    Object.assign(this, draft);
    this.#start = { id: start, of: this.#content() };
    this.#changed();
    return true;
  }

  save(): void {
    clearTimeout(this.#timers["save"]);
    this.#unsaved = true;
    this.#timers["save"] = setTimeout(() => this.flush(), SAVE_AFTER);
  }

  /** Keep at once what is to be kept: the page goes away. */
  flush(): void {
    if (this.#unsaved) this.#save();
    this.#unsaved = false;
  }

  async estimateNow(): Promise<void> {
    clearTimeout(this.#timers["estimate"]);
    const revision = this.revision;
    this.estimating = true;
    const found = await this.#ask<Estimate>("/estimate");
    if (found === "newer") return;
    this.estimating = false;
    this.estimateFailures = Array.isArray(found) ? found : [];
    if (Array.isArray(found)) return;
    this.estimate = found;
    this.#estimated = revision;
  }

  close(): void {
    this.flush();
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    for (const abort of Object.values(this.#aborts)) abort.abort();
  }

  #lead(values: Values): void {
    if (this.leads === "text" && this.text.trim()) this.replaced = this.text;
    this.values = values;
    this.leads = "form";
    this.#changed();
  }

  #changed(): void {
    this.revision += 1;
    this.save();
    clearTimeout(this.#timers["look"]);
    clearTimeout(this.#timers["estimate"]);
    this.#timers["look"] = setTimeout(() => void this.#look(), LOOK_AFTER);
  }

  async #look(): Promise<ConfigLook | null> {
    const revision = this.revision;
    this.looking = true;
    const found = await this.#ask<ConfigLook>("/config/look");
    if (found === "newer") return null;
    this.looking = false;
    this.failures = Array.isArray(found) ? found : [];
    if (Array.isArray(found) || revision !== this.revision) return null;
    this.look = found;
    if (found.ok) this.resolved = found.resolved ?? {};
    if (this.leads === "form") this.text = found.yaml || toYaml(this.values);
    else if (Object.keys(found.values ?? {}).length || found.ok) this.values = found.values ?? {};
    this.save();
    if (found.ok) this.#timers["estimate"] = setTimeout(() => void this.estimateNow(), ESTIMATE_AFTER);
    return found;
  }

  /** The reply, the problems, or "newer" where the same was asked again meanwhile. */
  async #ask<T>(path: string): Promise<T | Problem[] | "newer"> {
    this.#aborts[path]?.abort();
    const abort = (this.#aborts[path] = new AbortController());
    try {
      const reply = await request<T>("POST", path, { body: this.asked(), signal: abort.signal });
      this.away = false;
      return abort.signal.aborted ? "newer" : reply;
    } catch (error) {
      if (abort.signal.aborted) return "newer";
      this.away = error instanceof Refusal && error.away;
      return this.away ? [] : problemsOf(error);
    }
  }

  #save(): void {
    const { values, text, leads, name, notes, tags, preset } = this;
    const kept: Draft = {
      ...{ name, notes, tags, preset, leads },
      start: this.#startId(),
      values: withoutSecrets(values),
      text: leads === "text" ? textWithoutSecrets(text) : "",
    };
    try {
      localStorage.setItem(this.draft, JSON.stringify(kept));
    } catch {
      // A full store keeps the older draft; the form itself goes on.
    }
  }
}

function readDraft(key: string): Draft | null {
  try {
    const kept = JSON.parse(localStorage.getItem(key) ?? "null") as Draft | null;
    return kept && typeof kept.values === "object" && typeof kept.text === "string" && kept.start ? kept : null;
  } catch {
    return null;
  }
}
