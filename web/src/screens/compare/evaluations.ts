/** The numbers of the newest evaluation of each run. */
import type { RunRow } from "../../lib/api/shapes";

type Evaluation = Record<string, unknown>;
interface Model {
  measures?: Record<string, { value: number | null }>;
}

/** Results as results.json holds them: that of the run itself stands last among its models. */
function ofOne(evaluation: Evaluation | undefined): Record<string, number | null> {
  const results = (evaluation?.["results"] as Evaluation | undefined) ?? evaluation;
  const models = (results?.["models"] ?? []) as (Model | string)[];
  const model = models.filter((each): each is Model => typeof each === "object").at(-1);
  return Object.fromEntries(Object.entries(model?.measures ?? {}).map(([name, { value }]) => [name, value]));
}

/** Measure -> value, in the order of the runs; empty for a run that was not evaluated. */
export function measuresOf(evaluations: Evaluation[], runs: Pick<RunRow, "id">[]): Record<string, number | null>[] {
  return runs.map(({ id }) => ofOne(evaluations.find((each) => each["run"] === id)));
}
