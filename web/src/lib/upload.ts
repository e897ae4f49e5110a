/** Sends a file as the body of one PUT, and tells how far it is. fetch cannot say that yet; XMLHttpRequest can. */
import { accepted, address, Refusal, session } from "./api/client";
import type { DataSet, Problem } from "./api/shapes";
import { bytes } from "./format";
import { t } from "./words.svelte";

/** Ends of names of files that hold rows. */
export const SUFFIXES = [".json", ".jsonl", ".csv", ".parquet", ".txt"];

/** What can be told before a byte is sent; null where nothing stands against it. `most`: of the server, 0 if not known. */
export function obstacle(file: File, most: number): Problem | null {
  const problem = (code: string, message: string): Problem => ({ code, message, field: null, place: null });
  const name = file.name.toLowerCase();
  if (!SUFFIXES.some((suffix) => name.endsWith(suffix)))
    return problem("upload_type", t("data.wrongType", { name: file.name, types: SUFFIXES.join(", ") }));
  if (!file.size) return problem("upload_empty", t("data.emptyFile", { name: file.name }));
  if (most && file.size > most)
    return problem("upload_size", t("data.tooLarge", { name: file.name, size: bytes(file.size), most: bytes(most) }));
  return null;
}

/**
 * Send a file to the folder of uploads. `told` hears the share that is sent. Cut off by `signal`, the server keeps
 * nothing of it. Throws Refusal, and an AbortError after a cut.
 */
export function upload(file: File, told: (share: number) => void, signal: AbortSignal): Promise<DataSet> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", address(`/data/uploads/${encodeURIComponent(file.name)}`));
    request.setRequestHeader("X-Luthier", "1");
    request.setRequestHeader("Accept-Language", accepted());
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => event.lengthComputable && told(event.loaded / event.total);
    request.onerror = () => reject(new Refusal(0, [{ code: "away", message: "", field: null, place: null }]));
    request.onabort = () => reject(new DOMException("upload cut off", "AbortError"));
    request.onload = () => {
      if (request.status < 400) resolve(JSON.parse(request.responseText) as DataSet);
      else reject(refusal(request));
    };
    signal.addEventListener("abort", () => request.abort(), { once: true });
    if (signal.aborted) request.onabort(new ProgressEvent("abort"));
    else request.send(file);
  });
}

function refusal(request: XMLHttpRequest): Refusal {
  if (request.status === 401) session.ended();
  const plain: Problem = {
    code: `http_${request.status}`,
    message: `HTTP ${request.status}`,
    field: null,
    place: null,
  };
  try {
    const { error, problems } = JSON.parse(request.responseText) as { error?: Problem; problems?: Problem[] };
    return new Refusal(request.status, problems?.length ? problems : [error ?? plain]);
  } catch {
    return new Refusal(request.status, [plain]);
  }
}
