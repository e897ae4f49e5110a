/** Something to look at: two short runs of a tiny model and a data set with Chinese, emoji and one broken row. */
import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Server } from "./server";
import { PYTHON } from "./server";

export interface Furniture {
  run: string;
  other: string;
  dataset: string;
  folder: string;
  model: string;
}

const SENTENCES = [
  "小提琴有几根弦?🎻",
  "Which wood is a violin's top made of?",
  "弓毛是什么做的?",
  "How many frets has a guitar?",
];

/** Rows of questions and answers; `broken` adds a line that is no JSON. */
export function rows(count: number, broken = false): string {
  const lines = Array.from({ length: count }, (_, i) =>
    JSON.stringify({
      instruction: `${SENTENCES[i % SENTENCES.length]} (${i})`,
      input: "",
      output: `第 ${i} 个答案:four 🎶`,
    }),
  );
  if (broken) lines.splice(2, 0, '{"instruction": "cut off');
  return `${lines.join("\n")}\n`;
}

/** Make a tiny model in a folder that the server may read. */
export function tinyModel(folder: string): string {
  const code =
    "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from helpers import make_folder; print(make_folder('llama', Path(sys.argv[1])))";
  return execFileSync(PYTHON, ["-c", code, folder], {
    cwd: join(import.meta.dirname, "../.."),
    encoding: "utf-8",
  }).trim();
}

export function train(server: Server, model: string, name: string, more: string[] = []): string {
  const settings = [
    `model_name_or_path=${model}`,
    `dataset=${join(server.data, "questions.jsonl")}`,
    `output_dir=${join(server.runs, name)}`,
  ];
  const few = [
    "max_steps=12",
    "logging_steps=1",
    "per_device_train_batch_size=4",
    "save_steps=5",
    "val_size=4",
    "eval_steps=4",
    "template=default",
  ];
  writeFileSync(join(server.folder, `${name}.yaml`), "stage: sft\n");
  execFileSync(PYTHON, ["-m", "luthier", "train", join(server.folder, `${name}.yaml`), ...settings, ...few, ...more], {
    env: { ...process.env, HF_HUB_OFFLINE: "1", OMP_NUM_THREADS: "1", LUTHIER_CACHE: join(server.folder, "cache") },
    stdio: "pipe",
  });
  return name;
}

export async function furnish(server: Server): Promise<Furniture> {
  writeFileSync(join(server.data, "questions.jsonl"), rows(40));
  writeFileSync(join(server.data, "broken.jsonl"), rows(20, true));
  const model = tinyModel(join(server.folder, "models", "tiny"));
  const run = train(server, model, "first", ["learning_rate=1e-3"]);
  const other = train(server, model, "second", ["learning_rate=3e-3"]);
  return { run, other, dataset: "questions.jsonl", folder: server.data, model };
}
