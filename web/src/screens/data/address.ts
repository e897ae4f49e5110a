/** Which data set a part of the screen is about, and the address of each of its parts. */
export interface Chosen {
  dataset: string;
  folder: string;
}

export const asQuery = ({ dataset, folder }: Chosen): { dataset: string; folder: string } => ({ dataset, folder });

/** Address of a data set; `more` is the rest of the query. */
export function addressOf({ dataset, folder }: Chosen, more: Record<string, string> = {}): string {
  return `/data?${new URLSearchParams({ dataset, folder, ...more }).toString()}`;
}
