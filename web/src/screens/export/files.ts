/** Exports of a run as its files show them, and the commands that use them. */
import { address } from "../../lib/api/client";
import type { Shapes } from "../../lib/api/shapes";
import { FORMATS } from "./sizes";

export type File = Shapes["FileEntry"];

export interface Exported {
  /** Folder below `export` of the run. */
  folder: string;
  files: File[];
  bytes: number;
  modified: number;
  /** Whether the whole or one of its files did not pass its verification. */
  unverified: boolean;
  report: File | null;
}

export interface Check {
  name: string;
  result: "ok" | "failed" | "not done";
  found: string;
  limit: string;
  numbers: Record<string, number | null>;
}
export interface Report {
  subject: string;
  failed: boolean;
  checks: Check[];
}

export const UNVERIFIED = ".unverified";
const ROOT = "export/";

/** Folder of an export: one that holds several of them has a folder for each form. */
function folderOf(path: string): string {
  const [first = "", second = "", ...below] = path.split("/");
  return below.length && (FORMATS as readonly string[]).includes(second) ? `${first}/${second}` : second ? first : "";
}

/** Newest first. */
export function exportsOf(files: readonly File[]): Exported[] {
  const found = new Map<string, File[]>();
  for (const file of files) {
    const folder = file.path.startsWith(ROOT) ? folderOf(file.path.slice(ROOT.length)) : "";
    // What begins with a dot is still being written.
    if (folder && !folder.startsWith(".")) found.set(folder, [...(found.get(folder) ?? []), file]);
  }
  return [...found]
    .map(([folder, inside]) => ({
      folder,
      files: inside.sort((a, b) => b.bytes - a.bytes),
      bytes: inside.reduce((sum, file) => sum + file.bytes, 0),
      modified: Math.max(...inside.map((file) => file.modified)),
      unverified: folder.includes(UNVERIFIED) || inside.some((file) => file.path.endsWith(UNVERIFIED)),
      report: inside.find((file) => file.path === `${ROOT}${folder}/verify.json`) ?? null,
    }))
    .sort((a, b) => b.modified - a.modified);
}

export const download = (run: string, path: string): string =>
  address(`/runs/${encodeURIComponent(run)}/files/${path.split("/").map(encodeURIComponent).join("/")}`);

export interface Use {
  /** Key of what it is for. */
  what: "folder" | "llamaCpp" | "llamaServer" | "ollama" | "transformers" | "vllm" | "peft" | "llamaAdapter";
  command: string;
}

/** Text for a shell as one word. */
export const quoted = (text: string): string =>
  /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;

/** What can be done with an export; `base`: of its files, `name`: of the model. Nothing for what did not pass. */
export function uses(found: Exported, root: string, run: string, base: string): Use[] {
  const folder = `${root}/${run}/${ROOT}${found.folder}`;
  const listed: Use[] = [{ what: "folder", command: folder }];
  if (found.unverified) return listed;
  const names = found.files.map((file) => file.path.slice(ROOT.length + found.folder.length + 1));
  const gguf = names.filter((name) => name.endsWith(".gguf"));
  const isAdapter = found.folder.includes("adapter");
  if (names.includes("Modelfile")) {
    const model = run.toLowerCase().replace(/[^a-z0-9._-]+/g, "-");
    listed.push({
      what: "ollama",
      command: `cd ${quoted(folder)} && ollama create ${quoted(model)} -f Modelfile && ollama run ${quoted(model)}`,
    });
  } else if (gguf[0] && isAdapter) {
    listed.push({ what: "llamaAdapter", command: `llama-cli -m BASE.gguf --lora ${quoted(`${folder}/${gguf[0]}`)}` });
  } else if (gguf[0]) {
    listed.push({ what: "llamaCpp", command: `llama-cli -m ${quoted(`${folder}/${gguf[0]}`)} -cnv` });
    listed.push({ what: "llamaServer", command: `llama-server -m ${quoted(`${folder}/${gguf[0]}`)} --port 8080` });
  } else if (names.includes("adapter_config.json")) {
    const text = `PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(${JSON.stringify(base)}), ${JSON.stringify(folder)})`;
    listed.push({ what: "peft", command: text });
  } else if (names.includes("config.json")) {
    listed.push({ what: "transformers", command: `AutoModelForCausalLM.from_pretrained(${JSON.stringify(folder)})` });
    listed.push({ what: "vllm", command: `vllm serve ${quoted(folder)}` });
  }
  return listed;
}

/** A name for the next export that no folder has. */
export function freeName(wanted: string, taken: readonly Exported[]): string {
  const there = new Set(taken.map((each) => each.folder.split("/")[0]));
  let number = 1;
  while (there.has(number === 1 ? wanted : `${wanted}-${number}`)) number++;
  return number === 1 ? wanted : `${wanted}-${number}`;
}
