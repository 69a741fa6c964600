// What is asked of the server, and the same as a command for a terminal or a program.
// Addresses are relative: the server may be behind a proxy that gives it a folder.

const KEY = "anyformer-key";

export const getKey = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (key) => sessionStorage.setItem(KEY, key);

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function readError(response) {
  const text = await response.text();
  try {
    const body = JSON.parse(text);
    return body.error?.message ?? body.detail ?? text;
  } catch {
    return text || `${response.status} ${response.statusText}`;
  }
}

/** Send a body (an object, or a form with files) or get what is there; an answer that is an error is thrown. */
export async function send(path, body, signal) {
  const headers = getKey() ? { authorization: `Bearer ${getKey()}` } : {};
  const isForm = body instanceof FormData;
  if (body && !isForm) headers["content-type"] = "application/json";
  const payload = body && !isForm ? JSON.stringify(body) : body;
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: payload, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer. Is it still running?");
  }
  if (!response.ok) throw new ApiError(response.status, await readError(response));
  return response;
}

export const getJson = async (path, body, signal) => (await send(path, body, signal)).json();

/** The events of a streamed answer, as objects. */
export async function* stream(path, body, signal) {
  const response = await send(path, { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    text += value ?? "";
    const lines = text.split("\n");
    text = done ? "" : lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (!data || data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.code ?? 500, event.error.message);
      yield event;
    }
    if (done) return;
  }
}

/** A body with files: the fields as JSON in the part `request`, and a part for each file. */
export function makeBody(fields, files) {
  if (!files.length) return fields;
  const form = new FormData();
  form.append("request", JSON.stringify(fields));
  for (const [part, file] of files) form.append(part, file, file.name);
  return form;
}

// --- the same request elsewhere ---

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const address = (path) => new URL(path, document.baseURI).href;

export function makeCurl({ path, fields, files, isStream }) {
  const lines = [`curl ${isStream ? "-N " : ""}${address(path)}`];
  if (getKey()) lines.push('-H "Authorization: Bearer $ANYFORMER_API_KEY"');
  if (files.length) {
    lines.push(`-F ${quote(`request=${JSON.stringify(fields)}`)}`);
    for (const [part, file] of files) lines.push(`-F ${quote(`${part}=@${file.name}`)}`);
  } else {
    lines.push("-H 'Content-Type: application/json'");
    lines.push(`-d ${quote(JSON.stringify(isStream ? { ...fields, stream: true } : fields))}`);
  }
  return lines.join(" \\\n  ");
}

/** A value as a Python literal. */
function toPython(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(toPython).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value)
    .map(([name, part]) => `${JSON.stringify(name)}: ${toPython(part)}`)
    .join(", ")}}`;
}

const EXTRA = ["top_k", "min_p", "repetition_penalty", "keep"]; // fields that the package openai does not know

export function makePython({ path, fields, files, isStream }) {
  const key = getKey() ? 'os.environ["ANYFORMER_API_KEY"]' : '"none"';
  if (isStream) {
    const call = path.endsWith("chat/completions") ? "chat.completions" : "completions";
    const known = Object.entries(fields).filter(([name]) => !EXTRA.includes(name));
    const extra = Object.fromEntries(Object.entries(fields).filter(([name]) => EXTRA.includes(name)));
    const lines = known.map(([name, value]) => `    ${name}=${toPython(value)},`);
    if (Object.keys(extra).length) lines.push(`    extra_body=${toPython(extra)},`);
    const base = address(path).replace(`/${path.replace(/^v1\//, "")}`, "");
    const show = call === "completions" ? "answer.choices[0].text" : "answer.choices[0].message.content";
    return [
      ...(getKey() ? ["import os", ""] : []),
      "from openai import OpenAI",
      "",
      `client = OpenAI(base_url=${JSON.stringify(base)}, api_key=${key})`,
      `answer = client.${call}.create(`,
      ...lines,
      ")",
      `print(${show})`,
    ].join("\n");
  }
  const parts = [JSON.stringify(address(path))];
  if (files.length) {
    parts.push(`data={"request": json.dumps(${toPython(fields)})}`);
    parts.push(
      `files={${files.map(([part, file]) => `${JSON.stringify(part)}: open(${JSON.stringify(file.name)}, "rb")`).join(", ")}}`,
    );
  } else {
    parts.push(`json=${toPython(fields)}`);
  }
  if (getKey()) parts.push(`headers={"Authorization": f"Bearer {${key.replaceAll('"', "'")}}"}`);
  const imports = [...(files.length ? ["import json"] : []), ...(getKey() ? ["import os"] : [])];
  return [
    ...imports,
    ...(imports.length ? [""] : []),
    "import requests",
    "",
    `answer = requests.post(\n    ${parts.join(",\n    ")},\n)`,
    "answer.raise_for_status()",
    "print(answer.json())",
  ].join("\n");
}
