/** How rows are read as tokens: model, template, cut. Kept in this browser, for every data set. */
import type { Values } from "../../lib/api/shapes";
import { kept } from "../../lib/kept.svelte";
import { asQuery, type Chosen } from "./address";

interface Reading {
  model: string;
  template: string;
  cutoff: number | null;
}
const KEY = "data-reading";
const FRESH: Reading = { model: "", template: "", cutoff: 2048 };

export const reading = $state(kept(KEY, FRESH));
export const keep = (): void => localStorage.setItem(KEY, JSON.stringify(reading));

/** The same as settings. */
export function settings(chosen: Chosen): Values {
  return {
    model: { model_name_or_path: reading.model },
    data: {
      dataset: [chosen.dataset],
      dataset_dir: asQuery(chosen).folder,
      ...(reading.template && { template: reading.template }),
      ...(reading.cutoff && { cutoff_len: reading.cutoff }),
    },
  };
}
