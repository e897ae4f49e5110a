/** How large exports will be, from the number of parameters. */

/** Bits a weight of each form of GGUF; `whole`: made of a file of 16 bits, which is there meanwhile. */
export const FORMS: Record<string, { bits: number; whole: boolean }> = {
  q8_0: { bits: 8.5, whole: false },
  q6_k: { bits: 6.6, whole: true },
  q5_k_m: { bits: 5.7, whole: true },
  q4_k_m: { bits: 4.9, whole: true },
  q4_0: { bits: 4.5, whole: false },
  q3_k_m: { bits: 3.9, whole: true },
  bf16: { bits: 16, whole: false },
  f16: { bits: 16, whole: false },
  f32: { bits: 32, whole: false },
};

export const FORMATS = ["merged", "gguf", "ollama", "adapter", "gguf_adapter", "all"] as const;
export type Format = (typeof FORMATS)[number];
export const DTYPES: Record<string, number> = { bfloat16: 16, float16: 16, float32: 32 };
const ADAPTERS: readonly Format[] = ["adapter", "gguf_adapter"];
/** Tunings that change the weights themselves: there is no adapter to write. */
const WHOLE_MODELS: readonly string[] = ["full", "freeze"];
/** Kept free on top: what a disk needs that is written to. */
const SPARE = 1.05;

export const hasAdapter = (tuning: string): boolean => !WHOLE_MODELS.includes(tuning);
export const offered = (format: Format, tuning: string): boolean => hasAdapter(tuning) || !ADAPTERS.includes(format);
export const takesForms = (format: Format): boolean => ["gguf", "ollama", "all"].includes(format);
export const takesDtype = (format: Format): boolean => ["merged", "all"].includes(format);

export interface Asked {
  format: Format;
  dtype: string;
  forms: string[];
}
export interface Facts {
  parameters: number | null;
  /** Of the base as it lies on the disk. */
  bytes: number | null;
}

export interface Need {
  name: string;
  bytes: number;
  /** There only while the export is made. */
  meanwhile: boolean;
}

/** Each file that an export writes; null where the number of parameters is not known. Adapters are too small to count. */
export function needs(asked: Asked, facts: Facts): Need[] | null {
  const { parameters, bytes } = facts;
  if (ADAPTERS.includes(asked.format)) return [];
  if (!parameters) return null;
  const of = (bits: number): number => (parameters * bits) / 8;
  const found: Need[] = [];
  if (takesDtype(asked.format)) {
    const bits = DTYPES[asked.dtype];
    found.push({ name: "merged", bytes: bits ? of(bits) : (bytes ?? of(16)), meanwhile: false });
  }
  const files: [string, string[]][] = [];
  if (asked.format !== "ollama" && takesForms(asked.format)) files.push(["gguf", asked.forms]);
  if (asked.format === "ollama" || asked.format === "all") files.push(["ollama", asked.forms.slice(0, 1)]);
  for (const [kind, forms] of files) {
    for (const form of forms)
      found.push({ name: `${kind} ${form}`, bytes: of(FORMS[form]?.bits ?? 16), meanwhile: false });
    if (forms.some((form) => FORMS[form]?.whole)) found.push({ name: `${kind} f16`, bytes: of(16), meanwhile: true });
  }
  return found;
}

/** Bytes that have to be free. Formats are made one behind the other, so of what goes again the largest counts. */
export function total(found: readonly Need[]): number {
  const stays = found.filter((each) => !each.meanwhile).reduce((sum, each) => sum + each.bytes, 0);
  const goes = Math.max(0, ...found.filter((each) => each.meanwhile).map((each) => each.bytes));
  return Math.ceil((stays + goes) * SPARE);
}
