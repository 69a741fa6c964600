// What a person gives to each kind of task: {element, read, fill}. `read` returns {value, files}.

import { drawLine } from "./charts.js";
import { h, newId } from "./dom.js";
import { makeRowField, parseJson } from "./fields.js";
import { makeImageInput, makeSoundInput } from "./media.js";

const MAX_TEXT_FILE = 2e6; // bytes of a table that is read into the page; a larger one is sent as it is

const LABELS = { prompt: "Text to continue", text: "Text", texts: "Texts, one a line", json: "Input: a text, or JSON" };

const PLACEHOLDERS = { prompt: "Once upon a time", text: "Write something", texts: "one a line" };

export function makeInput(task, schema, changed, heard) {
  const makers = { image: makeImage, sound: makeSound, row: makeRow, series: makeSeries, goal: makeNothing };
  return (makers[task.kind] ?? makeArea)(task, schema, changed, heard);
}

const makeNothing = () => ({ element: null, read: () => ({ value: undefined, files: [] }), fill: () => {} });

function makeArea(task) {
  const id = newId("input");
  const isCode = task.kind === "json";
  const rows = { text: 3, prompt: 6 }[task.kind] ?? 5;
  const area = h("textarea", {
    id,
    rows,
    class: isCode ? "code" : null,
    placeholder: PLACEHOLDERS[task.kind],
    spellcheck: isCode ? "false" : null,
  });
  const read = () => ({ value: readArea(task, area.value), files: [] });
  const fill = (value) => {
    area.value =
      typeof value === "string" ? value : task.kind === "texts" ? value.join("\n") : JSON.stringify(value, null, 1);
  };
  const insert = h("button", { type: "button", class: "link", hidden: !task.mark }, `Insert ${task.mark}`);
  insert.addEventListener("click", () => {
    area.setRangeText(task.mark, area.selectionStart, area.selectionEnd, "end");
    area.focus();
  });
  const label = task.mark ? `Text, with ${task.mark} where something is missing` : (LABELS[task.kind] ?? "Input");
  const element = h("div", { class: "field wide" }, h("label", { for: id, class: "name" }, label), area, insert);
  return { element, read, fill };
}

function readArea(task, text) {
  if (task.kind === "texts") return text.split("\n").filter((line) => line.trim());
  if (task.kind !== "json") return text;
  if (task.nested) return parseJson(text);
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function makeImage(task, schema, changed) {
  return withFile(task, makeImageInput(changed), "Choose an image first.");
}

function makeSound(task, schema, changed, heard) {
  return withFile(task, makeSoundInput(changed, heard), "Choose or record a sound first.");
}

function withFile(task, media, words) {
  const read = () => {
    if (!media.file()) throw new Error(words);
    return { value: undefined, files: [[task.field, media.file()]] };
  };
  return { element: media.element, read, fill: () => {} };
}

// --- rows of tables ---

function makeRow(task, schema) {
  const fields = Object.entries(schema.properties).map(([name, part]) => makeRowField(part, name));
  let others = {}; // values of an example that are no fields: its targets
  const element = h(
    "div",
    { class: "grid" },
    fields.map((field) => field.element),
  );
  const read = () => {
    const value = { ...others };
    const files = [];
    for (const field of fields) {
      const current = field.read();
      const file = field.file?.();
      if (current !== undefined) value[field.name] = current;
      if (file) files.push([`${task.field}.${field.name}`, file]);
    }
    return { value, files };
  };
  const fill = (row) => {
    for (const field of fields) field.write(row[field.name]);
    others = Object.fromEntries(Object.entries(row).filter(([name]) => !(name in schema.properties)));
  };
  element.addEventListener("input", () => (others = {})); // what was true of the example is not true of this row
  return { element, read, fill, isLive: true };
}

// --- series ---

function makeSeries(task) {
  const id = newId("input");
  const area = h("textarea", { id, rows: 8, class: "code", spellcheck: "false" });
  const picture = h("div", { class: "preview" });
  let file = null;
  const draw = () => {
    const numbers = area.value.trim() ? firstNumbers(parseSeries(area.value)) : [];
    picture.replaceChildren(...(numbers.length > 1 ? [drawLine(numbers)] : []));
  };
  const preview = () => {
    try {
      draw();
    } catch {
      picture.replaceChildren(); // half-typed JSON
    }
  };
  area.addEventListener("input", () => {
    file = null;
    preview();
  });
  const chooser = h("input", {
    type: "file",
    accept: ".csv,.tsv,.json,.jsonl,.txt,.parquet",
    "aria-label": "A file of series",
  });
  chooser.addEventListener("change", async () => {
    file = chooser.files[0];
    if (file.size < MAX_TEXT_FILE && !file.name.endsWith(".parquet")) {
      area.value = await file.text();
      file = null;
    } else area.value = "";
    preview();
  });
  const read = () =>
    file ? { value: undefined, files: [[task.field, file]] } : { value: parseSeries(area.value), files: [] };
  const fill = (value) => {
    area.value = typeof value[0] === "object" && !Array.isArray(value[0]) ? toTable(value) : value.join("\n");
    preview();
  };
  const element = h(
    "div",
    { class: "field wide" },
    h("label", { for: id, class: "name" }, "Numbers, or a table with a header"),
    area,
    chooser,
    picture,
  );
  return { element, read, fill };
}

/** Numbers, or rows of a table that is separated by tabs, semicolons or commas; JSON as it is. */
export function parseSeries(text) {
  const trimmed = text.trim();
  if (!trimmed) throw new Error("Give some numbers first.");
  if (/^[[{]/.test(trimmed)) return parseJson(trimmed);
  if (/^[\d\s.,;eE+-]+$/.test(trimmed))
    return trimmed
      .split(/[\s,;]+/)
      .filter(Boolean)
      .map(Number);
  const lines = trimmed.split(/\r?\n/);
  const separator = ["\t", ";", ","].find((mark) => lines[0].includes(mark)) ?? ",";
  const names = lines[0].split(separator).map((name) => name.trim());
  return lines
    .slice(1)
    .filter(Boolean)
    .map((line) => {
      const cells = line.split(separator);
      return Object.fromEntries(names.map((name, i) => [name, toCell(cells[i] ?? "")]));
    });
}

function toCell(text) {
  const trimmed = text.trim();
  if (!trimmed) return null;
  return Number.isFinite(Number(trimmed)) ? Number(trimmed) : trimmed;
}

function toTable(rows) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  return [names, ...rows.map((row) => names.map((name) => row[name] ?? ""))].map((cells) => cells.join(",")).join("\n");
}

function firstNumbers(value) {
  if (!Array.isArray(value)) return [];
  if (value.every((item) => typeof item === "number")) return value;
  const name = Object.keys(value[0] ?? {}).find((key) => typeof value[0][key] === "number");
  return value.map((row) => row[name]).filter((item) => typeof item === "number");
}
