import { describe, expect, it } from "vitest";
import { events, type ServerEvent } from "./stream";

const bytes = (text: string): Uint8Array<ArrayBuffer> => new TextEncoder().encode(text);

function reply(parts: Uint8Array<ArrayBuffer>[], cancelled = () => {}): Response {
  let at = 0;
  const body = new ReadableStream<Uint8Array<ArrayBuffer>>({
    pull: (control) => {
      const part = parts[at++];
      if (part) control.enqueue(part);
      else control.close();
    },
    cancel: cancelled,
  });
  return new Response(body);
}

async function all(from: Response): Promise<ServerEvent[]> {
  const found: ServerEvent[] = [];
  for await (const event of events(from)) found.push(event);
  return found;
}

describe("events of a stream", () => {
  const text = 'id: 7\nevent: status\ndata: {"a":"é你🙂"}\n\n: still there\n\ndata: one\ndata: two\n\ndata: [DONE]\n\n';
  const expected = [
    { name: "status", data: '{"a":"é你🙂"}', id: "7" },
    { name: "message", data: "one\ntwo", id: "" },
    { name: "message", data: "[DONE]", id: "" },
  ];

  it("are the same wherever the bytes are cut", async () => {
    const whole = bytes(text);
    for (let cut = 1; cut < whole.length; cut++) {
      expect(await all(reply([whole.slice(0, cut), whole.slice(cut)])), `cut at ${cut}`).toEqual(expected);
    }
  });

  it("are the same with other line ends", async () => {
    expect(await all(reply([bytes(text.replaceAll("\n", "\r\n"))]))).toEqual(expected);
    expect(await all(reply([...bytes(text.replaceAll("\n", "\r\n"))].map((byte) => new Uint8Array([byte]))))).toEqual(
      expected,
    );
  });

  it("leave out what was not finished", async () => {
    expect(await all(reply([bytes("data: whole\n\ndata: ha")]))).toEqual([{ name: "message", data: "whole", id: "" }]);
  });

  it("end the connection when nobody reads on", async () => {
    let cancelled = false;
    for await (const event of events(reply([bytes("data: a\n\n"), bytes("data: b\n\n")], () => (cancelled = true)))) {
      expect(event.data).toBe("a");
      break;
    }
    expect(cancelled).toBe(true);
  });
});
