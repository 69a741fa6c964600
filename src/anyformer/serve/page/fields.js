// Settings as controls, made from their JSON schema: types, ranges, defaults and help come from the server.

import { format, h, newId } from "./dom.js";

const LONGEST_SLIDER = 1000; // steps

const types = (schema) => {
  const names = schema.type ?? schema.anyOf?.map((option) => option.type) ?? [];
  return Array.isArray(names) ? names : [names];
};

/** A control for a value: {element, read, write}. `read` gives undefined where the default stands. */
export function makeField(schema, name, value = schema.default) {
  const control = chooseControl(schema, value);
  const id = newId("field");
  const words = schema.description?.replace(/ \(\d{4}\.\d{5}\)|`/g, ""); // numbers of papers are for the documentation
  const help = words ? h("small", { id: `${id}-help` }, words) : null;
  control.input.id = id;
  if (help) control.input.setAttribute("aria-describedby", help.id);
  const label = h("label", { for: id, class: "name" }, schema.title ?? name, control.unit);
  const element = h("div", { class: `field is-${control.kind}`, "data-name": name }, label, control.element, help);
  const initial = JSON.stringify(schema.default ?? null);
  const read = () => {
    const current = control.read();
    return JSON.stringify(current ?? null) === initial ? undefined : current;
  };
  return { element, read, write: control.write, name };
}

function chooseControl(schema, value) {
  const names = types(schema);
  const isNumber = names.includes("number") || names.includes("integer");
  if (schema.enum) return makeSelect(schema.enum, value);
  if (names.includes("boolean")) return makeSwitch(value);
  if (isNumber) return makeNumber(schema, names, value);
  if (names.includes("string") && names.includes("array")) return makeLines(value);
  if (names.includes("string")) return makeText(value);
  return makeJson(value);
}

function makeSelect(options, value) {
  const input = h(
    "select",
    {},
    options.map((option) => h("option", { selected: option === value }, option)),
  );
  return { kind: "select", element: input, input, read: () => input.value, write: (x) => (input.value = x) };
}

function makeSwitch(value) {
  const input = h("input", { type: "checkbox", role: "switch", checked: value === true });
  return {
    kind: "switch",
    element: input,
    input,
    read: () => input.checked,
    write: (x) => (input.checked = x === true),
  };
}

function makeText(value) {
  const input = h("input", { type: "text", value: value ?? "", placeholder: "none", autocomplete: "off" });
  return {
    kind: "text",
    element: input,
    input,
    read: () => input.value || null,
    write: (x) => (input.value = x ?? ""),
  };
}

function makeLines(value) {
  const join = (x) => (Array.isArray(x) ? x.join("\n") : (x ?? ""));
  const input = h("textarea", { rows: 2, placeholder: "one a line", spellcheck: "false" });
  input.value = join(value);
  return {
    kind: "text",
    element: input,
    input,
    read: () => input.value.split("\n").filter((line) => line),
    write: (x) => (input.value = join(x)),
  };
}

function makeJson(value) {
  const join = (x) => (x == null ? "" : JSON.stringify(x));
  const input = h("textarea", { rows: 2, placeholder: "JSON", spellcheck: "false", class: "code" });
  input.value = join(value);
  const read = () => (input.value.trim() ? parseJson(input.value) : null);
  return { kind: "json", element: input, input, read, write: (x) => (input.value = join(x)) };
}

export function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`This is not JSON: ${error.message}`);
  }
}

/** A number, with a slider where there is a range that a person would choose from. Empty: none. */
function makeNumber(schema, names, value) {
  const isWhole = !names.includes("number");
  const lowest = schema.minimum ?? schema.exclusiveMinimum;
  const highest = schema.maximum ?? schema.exclusiveMaximum;
  const usual = schema["x-usual"] ?? (highest - lowest <= 1 ? [Math.max(lowest, 0), highest] : null);
  const input = h("input", {
    type: "number",
    step: isWhole ? 1 : "any",
    min: lowest,
    max: highest,
    value: value ?? "",
    inputmode: "decimal",
    placeholder: names.includes("null") ? "none" : "",
    autocomplete: "off",
  });
  const read = () => (input.value === "" ? null : Number(input.value));
  if (!usual) return { kind: "number", element: input, input, read, write: (x) => (input.value = x ?? "") };
  const span = usual[1] - usual[0];
  const step = isWhole ? Math.max(1, Math.round(span / LONGEST_SLIDER)) : 10 ** Math.floor(Math.log10(span / 40 || 1));
  const slider = h("input", { type: "range", min: usual[0], max: usual[1], step, "aria-hidden": "true", tabindex: -1 });
  const follow = () => {
    slider.value = input.value === "" ? usual[1] : input.value;
    slider.classList.toggle("unset", input.value === "");
  };
  slider.addEventListener("input", () => {
    input.value = Number(Number(slider.value).toPrecision(6));
    follow();
  });
  slider.addEventListener("change", () => input.dispatchEvent(new Event("change", { bubbles: true })));
  input.addEventListener("input", follow);
  follow();
  const write = (x) => {
    input.value = x ?? "";
    follow();
  };
  return { kind: "slider", element: h("span", { class: "range" }, slider, input), input, read, write };
}

/** A field of a row of a table; every one may be missing. */
export function makeRowField(schema, name) {
  const kind = schema["x-kind"];
  const range = schema["x-usual"] ? `usually ${schema["x-usual"].map(format).join(" to ")}` : "";
  const description = [schema.description, range].filter(Boolean).join("; ");
  if (kind === "choice") return makeChoice(schema, name, description);
  if (kind === "image" || kind === "sound")
    return makeFile(name, description, `${kind === "image" ? "image" : "audio"}/*`);
  const shown = { title: name, description, default: null, "x-usual": schema["x-usual"] };
  if (kind === "number") return makeField({ ...shown, type: ["number", "null"] }, name, null);
  if (kind === "numbers") return makeField(shown, name, null);
  const field = makeField({ ...shown, type: ["string", "null"] }, name, null);
  if (kind === "date") field.element.querySelector("input").placeholder = "2024-06-01";
  return field;
}

function makeChoice(schema, name, description) {
  const field = makeField({ title: name, description, enum: [""], default: "" }, name);
  const input = field.element.querySelector("select");
  input.replaceChildren(
    h("option", { value: "" }, "missing"),
    ...schema.examples.map((option) => h("option", {}, option)),
  );
  const write = (value) => {
    const text = value == null ? "" : String(value);
    if (![...input.options].some((option) => option.value === text)) input.append(h("option", {}, text));
    input.value = text;
  };
  return { ...field, read: () => input.value || undefined, write };
}

function makeFile(name, description, accept) {
  const id = newId("field");
  const input = h("input", { type: "file", accept, id });
  const element = h(
    "div",
    { class: "field is-file", "data-name": name },
    h("label", { for: id, class: "name" }, name),
    input,
    h("small", {}, description),
  );
  return { element, name, read: () => undefined, write: () => {}, file: () => input.files[0] ?? null };
}
