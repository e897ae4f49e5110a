/** Server-sent events out of a reply to fetch: EventSource can neither post nor be read piece by piece. */

export interface ServerEvent {
  name: string;
  data: string;
  id: string;
}

/**
 * The events of a reply, each as soon as the blank line behind it is there. Bytes may be cut anywhere: inside a
 * letter, between CR and LF. What stands behind the last blank line is no event. Leaving the loop ends the reading.
 */
export async function* events(reply: Response): AsyncGenerator<ServerEvent> {
  if (!reply.body) return;
  const reader = reply.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let done = false;
  try {
    while (!done) {
      const part = await reader.read();
      done = part.done;
      rest += part.value ? decoder.decode(part.value, { stream: true }) : decoder.decode();
      const blocks = rest.split(/\r\n\r\n|\n\n/);
      rest = blocks.pop() ?? "";
      for (const block of blocks) {
        const event = read(block);
        if (event) yield event;
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

function read(block: string): ServerEvent | null {
  const event: ServerEvent = { name: "message", data: "", id: "" };
  const data: string[] = [];
  for (const line of block.split(/\r?\n/)) {
    const colon = line.indexOf(":");
    if (colon <= 0) continue;
    const value = line.slice(colon + 1).replace(/^ /, "");
    const field = line.slice(0, colon);
    if (field === "data") data.push(value);
    else if (field === "event") event.name = value;
    else if (field === "id") event.id = value;
  }
  event.data = data.join("\n");
  return data.length ? event : null;
}
