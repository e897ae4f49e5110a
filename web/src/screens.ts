/** The screens: first part of the address -> what is shown. */
import type { Component } from "svelte";
import Chat from "./screens/Chat.svelte";
import Compare from "./screens/Compare.svelte";
import Data from "./screens/Data.svelte";
import Evaluate from "./screens/Evaluate.svelte";
import Export from "./screens/Export.svelte";
import Queue from "./screens/Queue.svelte";
import Run from "./screens/Run.svelte";
import Runs from "./screens/Runs.svelte";
import Settings from "./screens/Settings.svelte";
import Start from "./screens/Start.svelte";

export const SCREENS: Record<string, Component> = {
  start: Start,
  runs: Runs,
  run: Run,
  compare: Compare,
  data: Data,
  evaluate: Evaluate,
  chat: Chat,
  export: Export,
  queue: Queue,
  settings: Settings,
};

/** What stands in the navigation, in this order. */
export const TABS = ["start", "runs", "data", "evaluate", "chat", "export", "queue", "settings"] as const;
