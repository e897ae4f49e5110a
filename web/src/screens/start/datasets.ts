/** Which data sets settings name, and how a choice changes them. */
import type { DataSet } from "../../lib/api/shapes";

export const FOLDER = "data.dataset_dir";
const USUAL_FOLDER = "data";
export type Role = "data.dataset" | "data.eval_dataset";
export const ROLES: readonly Role[] = ["data.dataset", "data.eval_dataset"];

type Given = (key: string) => unknown;

export const namesOf = (value: unknown): string[] => {
  const list = Array.isArray(value) ? value.map(String) : typeof value === "string" ? value.split(",") : [];
  return list.map((each) => each.trim()).filter(Boolean);
};

const folderOf = (given: Given): string => {
  const folder = given(FOLDER);
  return typeof folder === "string" ? folder : USUAL_FOLDER;
};

/** Whether two names mean one folder: settings may name it from where the server was started. */
const sameFolder = (whole: string, given: string): boolean =>
  whole === given || (!given.startsWith("/") && whole.endsWith(`/${given.replace(/^\.\//, "").replace(/\/$/, "")}`));

/** Whether a name of the settings means a data set. */
const means = (name: string, set: DataSet, folder: string): boolean =>
  (name === set.name && sameFolder(set.folder, folder)) ||
  (name.endsWith(`/${set.name}`) && sameFolder(set.folder, name.slice(0, -set.name.length - 1)));

export const isChosen = (set: DataSet, role: Role, given: Given): boolean =>
  namesOf(given(role)).some((name) => means(name, set, folderOf(given)));

/** Whether others of another folder are chosen: names are looked up in one folder only. */
export const isElsewhere = (set: DataSet, given: Given): boolean =>
  ROLES.some((role) => namesOf(given(role)).length > 0) &&
  !sameFolder(set.folder, folderOf(given)) &&
  !ROLES.some((role) => isChosen(set, role, given));

/** The settings after a set was chosen for a role, or not any more. */
export function choose(set: DataSet, role: Role, wanted: boolean, given: Given): Record<string, unknown> {
  const others = namesOf(given(role)).filter((name) => !means(name, set, folderOf(given)));
  const names = wanted ? [...others, set.name] : others;
  const first = wanted && ROLES.every((each) => namesOf(given(each)).length === 0);
  if (first) return { [role]: [set.name], [FOLDER]: set.folder === USUAL_FOLDER ? undefined : set.folder };
  return { [role]: names.length ? names : undefined };
}

/** The packaged example: support tickets, or whatever is called an example. */
export const exampleOf = (sets: DataSet[]): DataSet | undefined =>
  sets.find((set) => /(^|\/)tickets$/.test(set.folder) && /train/.test(set.name)) ??
  sets.find((set) => /example|demo/.test(`${set.folder}/${set.name}`));

export const heldOutOf = (example: DataSet, sets: DataSet[]): DataSet | undefined =>
  sets.find((set) => set.folder === example.folder && /held|eval|test/.test(set.name));
