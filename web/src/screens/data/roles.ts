/** Roles that columns can have in each format, and the columns that have them where nothing else is said. */
export const ROLES: Record<string, Record<string, string>> = {
  alpaca: {
    prompt: "instruction",
    query: "input",
    response: "output",
    system: "system",
    history: "history",
    chosen: "chosen",
    rejected: "rejected",
    kto_tag: "kto_tag",
    tools: "tools",
  },
  sharegpt: {
    messages: "conversations",
    system: "system",
    chosen: "chosen",
    rejected: "rejected",
    kto_tag: "kto_tag",
    tools: "tools",
  },
  openai: {
    messages: "messages",
    prompt: "prompt",
    completion: "completion",
    chosen: "chosen",
    rejected: "rejected",
    kto_tag: "kto_tag",
    tools: "tools",
  },
  text: { prompt: "text" },
};

/** The entry of dataset_info.json that says so; other keys of the entry stay. */
export function entryOf(
  entry: Record<string, unknown>,
  format: string,
  columns: Record<string, string>,
): Record<string, unknown> {
  const { formatting: _formatting, columns: _columns, ...rest } = entry;
  const chosen = Object.fromEntries(Object.entries(columns).filter(([, column]) => column));
  return {
    ...rest,
    formatting: format,
    ...(Object.keys(chosen).length && { columns: chosen }),
  };
}

/** The question of a row as a person would type it; empty where it has none. */
export function questionOf(row: unknown, format: string, columns: Record<string, string>): string {
  if (typeof row !== "object" || row === null) return "";
  const values = row as Record<string, unknown>;
  const named = (role: string): unknown => values[columns[role] ?? ROLES[format]?.[role] ?? role];
  for (const list of [named("messages"), values["messages"], values["conversations"], named("prompt")]) {
    if (Array.isArray(list)) return firstQuestion(list);
  }
  const said = [named("prompt"), named("query")].filter((each): each is string => typeof each === "string" && !!each);
  return said.join("\n").trim();
}

function firstQuestion(turns: unknown[]): string {
  for (const turn of turns as Record<string, unknown>[]) {
    const text = turn["content"] ?? turn["value"];
    const role = turn["role"] ?? turn["from"];
    if ((role === "user" || role === "human") && typeof text === "string") return text.trim();
  }
  return "";
}
