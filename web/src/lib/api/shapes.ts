/** Short names for the shapes of the interface. */
import type { components } from "./types";

export type Shapes = components["schemas"];
export type Problem = Shapes["Problem"];
export type About = Shapes["About"];
export type Values = Record<string, Record<string, unknown>>;
export type Job = Shapes["Job"];
export type Jobs = Shapes["Jobs"];
export type NewJob = Shapes["NewJob"];
export type RunRow = Shapes["RunRow"];
export type RunPage = Shapes["RunPage"];
export type RunDetail = Shapes["RunDetail"];
export type Curve = Shapes["Curve"];
export type Curves = Shapes["Curves"];
export type Form = Shapes["Form"];
export type FormField = Shapes["FormField"];
export type ConfigLook = Shapes["ConfigLook"];
export type Estimate = Shapes["Estimate"];
export type DataSet = Shapes["DataSet"];
export type ModelRow = Shapes["ModelRow"];
export type Serving = Shapes["Serving"];
