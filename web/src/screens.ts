/** The screens: first part of the address -> how to load it. Each is a file of its own, fetched when it is opened. */
import type { Component } from "svelte";

type Loader = () => Promise<{ default: Component }>;

export const SCREENS: Record<string, Loader> = {
  start: () => import("./screens/Start.svelte"),
  runs: () => import("./screens/Runs.svelte"),
  run: () => import("./screens/Run.svelte"),
  compare: () => import("./screens/Compare.svelte"),
  data: () => import("./screens/Data.svelte"),
  evaluate: () => import("./screens/Evaluate.svelte"),
  chat: () => import("./screens/Chat.svelte"),
  export: () => import("./screens/Export.svelte"),
  queue: () => import("./screens/Queue.svelte"),
  settings: () => import("./screens/Settings.svelte"),
};

/** What stands in the navigation, in this order. */
export const TABS = ["start", "runs", "data", "evaluate", "chat", "export", "queue", "settings"] as const;
