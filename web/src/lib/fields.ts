/** Settings as texts of a form: what somebody types becomes a value, and a value a text. */
import type { Form, FormField, Values } from "./api/shapes";

type Kind = FormField["kind"];
type Read = (text: string) => unknown;

const parts = (text: string): string[] =>
  text
    .split(/[,\n]/)
    .map((each) => each.trim())
    .filter(Boolean);

/** A number where the text is one; otherwise the text, about which the server says what it says on the command line. */
const asNumber = (text: string): unknown => {
  const size = Number(text);
  return text.trim() && Number.isFinite(size) ? size : text.trim();
};

const asJson = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
};

/** `key: value` lines; values are JSON where they can be. A whole JSON text is taken as it is. */
const asMapping = (text: string): unknown => {
  const whole = asJson(text);
  if (typeof whole === "object" && whole !== null) return whole;
  const pairs = text
    .split("\n")
    .filter((line) => line.trim())
    .map((line) => [line, line.indexOf(":")] as const);
  if (pairs.some(([, at]) => at < 1)) return text;
  return Object.fromEntries(pairs.map(([line, at]) => [line.slice(0, at).trim(), asJson(line.slice(at + 1).trim())]));
};

const WORDS: Record<string, unknown> = { true: true, false: false };

const READERS: Record<Kind, Read> = {
  text: (text) => text,
  number: asNumber,
  integer: asNumber,
  flag: (text) => WORDS[text] ?? text,
  choice: (text) => WORDS[text] ?? text,
  names: parts,
  numbers: (text) => parts(text).map(asNumber),
  mapping: asMapping,
};

/** The value that a text of a field means; undefined where it is empty: nothing is given then. */
export const read = (kind: Kind, text: string): unknown => (text.trim() === "" ? undefined : READERS[kind](text));

/** How a value stands in the field. */
export function show(value: unknown): string {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value)) return value.every((each) => typeof each !== "object") ? value.join(", ") : pretty(value);
  if (typeof value !== "object") return String(value);
  const pairs = Object.entries(value);
  if (pairs.some(([, each]) => typeof each === "object" && each !== null)) return pretty(value);
  return pairs.map(([key, each]) => `${key}: ${String(each)}`).join("\n");
}

const pretty = (value: unknown): string => JSON.stringify(value, null, 1);

/** Split `section.key`. */
export function split(key: string): [section: string, name: string] {
  const dot = key.indexOf(".");
  return [key.slice(0, dot), key.slice(dot + 1)];
}

export function valueOf(values: Values, key: string): unknown {
  const [section, name] = split(key);
  return values[section]?.[name];
}

/** Values with one of them set; undefined takes it away, and its section where nothing is left. */
export function withValue(values: Values, key: string, value: unknown): Values {
  const [section, name] = split(key);
  const { [name]: _, ...rest } = values[section] ?? {};
  const changed = value === undefined ? rest : { ...rest, [name]: value };
  const { [section]: __, ...others } = values;
  return Object.keys(changed).length ? { ...others, [section]: changed } : others;
}

/** `section.key` of every value. */
export const keysOf = (values: Values): string[] =>
  Object.entries(values).flatMap(([section, inner]) => Object.keys(inner).map((name) => `${section}.${name}`));

export const same = (a: unknown, b: unknown): boolean => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);

/** Whether a setting exists for this tuning and this objective. */
export function belongs(field: FormField, tuning: string, objective: string): boolean {
  if (!field.only?.length) return true;
  return field.only.includes(field.key.startsWith("tuning.") ? tuning : objective);
}

/** The settings that count for a method: those of answers while training only where such answers earn rewards. */
export function fieldsFor(shelf: Form, tuning: string, objective: string): FormField[] {
  const earns = shelf.objectives.find((each) => each.name === objective)?.goal === "reward";
  return shelf.fields.filter(
    (field) => belongs(field, tuning, objective) && (earns || !field.key.startsWith("rollout.")),
  );
}

/** Whether all words of a search stand in the name, the label or the help of a setting. */
export function found(field: FormField, search: string): boolean {
  const text = `${field.key} ${field.label} ${field.help}`.toLowerCase();
  return search
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}

/** Values as YAML in the nested form; the inner values are JSON, which YAML contains. */
export function toYaml(values: Values): string {
  return Object.entries(values)
    .map(([section, inner]) => {
      const lines = Object.entries(inner).map(([key, value]) => `  ${key}: ${JSON.stringify(value)}`);
      return [`${section}:`, ...lines, ""].join("\n");
    })
    .join("");
}

const SECRET = /(token|secret|password|api_key|authorization)$/i;

/** Values without what may be a secret; what is kept in the browser holds none. */
export function withoutSecrets(values: Values): Values {
  const open = (inner: Record<string, unknown>) =>
    Object.fromEntries(Object.entries(inner).filter(([key]) => !SECRET.test(key)));
  return Object.fromEntries(Object.entries(values).map(([section, inner]) => [section, open(inner)]));
}

/** A text of YAML without the values of what may be a secret. */
export const textWithoutSecrets = (text: string): string =>
  text.replace(/^(\s*[\w.-]*(?:token|secret|password|api_key|authorization)\s*:).*$/gim, "$1");
