// The page: which model, which task, its form, and what it answers.

import { drawAnswer, drawNotes, drawText } from "./answers.js";
import { ApiError, getJson, getKey, makeBody, makeCurl, makePython, send, setKey, stream } from "./api.js";
import { makeChat } from "./chat.js";
import { byId, format, h } from "./dom.js";
import { makeField } from "./fields.js";
import { makeInput } from "./inputs.js";

// Names of settings in OpenAI's format; those that are not here have the same.
const COMPLETION_NAMES = {
  tokens: "max_tokens",
  samples: "n",
  json_schema: "guided_json",
  regex: "guided_regex",
  grammar: "guided_grammar",
  choices: "guided_choice",
};
const ALWAYS_SENT = ["tokens", "temperature", "seed"]; // there the defaults of that format differ from the recipe's
const UNSHOWN = ["logprobs", "echo", "tools", "logit_bias", "exact"]; // change what is answered, not what is seen

const UNSEEN = ["texts", "goal", "messages"]; // the lens shows one answer to one input

let running = null; // the controller of the answer that is being written

// --- a key, and models ---

/** Do something that asks the server; where it wants a key, ask for one and try again. */
export async function withKey(action) {
  for (;;) {
    try {
      return await action();
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401) throw error;
      await askForKey();
    }
  }
}

function askForKey() {
  const dialog = byId("key-dialog");
  byId("key-wrong").hidden = !getKey();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        setKey(byId("key").value.trim());
        byId("key").value = "";
        resolve();
      },
      { once: true },
    );
    if (!dialog.open) dialog.showModal();
  });
}

async function start() {
  const { data } = await withKey(() => getJson("v1/models"));
  const names = data.map((model) => model.id);
  const nav = byId("models");
  nav.replaceChildren(...names.map((name) => h("a", { href: `#${encodeURIComponent(name)}` }, name)));
  const select = byId("model-select");
  select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  select.addEventListener("change", () => (location.hash = encodeURIComponent(select.value)));
  nav.hidden = byId("picker").hidden = names.length < 2;
  const open = () => {
    const wanted = decodeURIComponent(location.hash.slice(1));
    const name = names.includes(wanted) ? wanted : names[0];
    for (const link of nav.children) link.setAttribute("aria-current", link.textContent === name ? "page" : "false");
    select.value = name;
    openModel(name).catch(showFailure);
  };
  addEventListener("hashchange", open);
  open();
}

function showFailure(error) {
  byId("main").replaceChildren(h("p", { class: "notice", role: "alert" }, error.message));
}

async function openModel(name) {
  running?.abort();
  const schema = await withKey(() => getJson(`v1/describe?model=${encodeURIComponent(name)}`));
  document.title = `${name} · anyformer`;
  const body = h("div", { class: "task" });
  const tabs = h("div", { class: "tabs", role: "tablist", hidden: schema["x-tasks"].length < 2 });
  const choose = (index) => {
    running?.abort();
    [...tabs.children].forEach((tab, i) => {
      tab.setAttribute("aria-selected", i === index);
      tab.tabIndex = i === index ? 0 : -1;
    });
    const task = schema["x-tasks"][index];
    body.replaceChildren(task.kind === "messages" ? makeChatTask(name, schema, task) : makeTask(name, schema, task));
  };
  schema["x-tasks"].forEach((task, i) =>
    tabs.append(h("button", { type: "button", role: "tab", onclick: () => choose(i) }, task.title)),
  );
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next =
      ([...tabs.children].indexOf(document.activeElement) + step + tabs.children.length) % tabs.children.length;
    choose(next);
    tabs.children[next].focus();
  });
  const about = schema.description ? h("p", { class: "about" }, schema.description) : null;
  byId("main").replaceChildren(h("h1", {}, name), about, h("p", { class: "quiet" }, describeModel(schema)), tabs, body);
  choose(0);
}

function describeModel({ recipe, parameters, step, val_loss: loss }) {
  const size = parameters > 1e6 ? `${format(parameters / 1e6)} M` : format(parameters);
  return [
    recipe,
    `${size} parameters`,
    step && `${format(step)} steps`,
    loss != null && `validation loss ${format(loss)}`,
  ]
    .filter(Boolean)
    .join(" · ");
}

// --- settings and requests ---

/** The settings of a task as fields: those without which it makes no sense in front, the others below. */
function makeSettings(schema, task) {
  const properties = task.nested ? schema.properties[task.field].properties : schema.properties;
  const names = task.settings.filter((name) => !UNSHOWN.includes(name));
  const fields = names.map((name) =>
    makeField(properties[name], name, task.defaults[name] ?? properties[name].default),
  );
  const isFirst = (field) => task.kind === "goal" && "x-usual" in properties[field.name];
  const isUsual = (field) => "x-usual" in properties[field.name];
  const others = fields.filter((field) => !isFirst(field)).sort((a, b) => isUsual(b) - isUsual(a)); // those to play with
  const front = h(
    "div",
    { class: "grid" },
    fields.filter(isFirst).map((field) => field.element),
  );
  const isOpen = task.output === "completions" && task.kind === "prompt" && matchMedia("(min-width: 60rem)").matches;
  const back = h(
    "details",
    { class: "settings", hidden: !others.length, open: isOpen },
    h("summary", {}, "Settings"),
    h(
      "div",
      { class: "grid" },
      others.map((field) => field.element),
    ),
  );
  const read = (always = []) => {
    const values = {};
    for (const field of fields) {
      const value = field.read() ?? (always.includes(field.name) ? properties[field.name].default : undefined);
      if (value !== undefined) values[field.name] = value;
    }
    return values;
  };
  return { front, back, read };
}

const formatTime = (ms) => (ms < 995 ? `${Math.round(ms)} ms` : `${format(ms / 1000)} s`);

const toCompletion = (settings) =>
  Object.fromEntries(
    Object.entries(settings)
      .filter(([, value]) => value !== null)
      .map(([name, value]) => [COMPLETION_NAMES[name] ?? name, value]),
  );

/** What is sent for a task: {path, fields, files, isStream}. */
function makeRequest(name, task, input, settings) {
  const { value, files } = input.read();
  if (task.kind === "prompt") {
    const fields = { model: name, prompt: value, ...toCompletion(settings.read(ALWAYS_SENT)) };
    return { path: "v1/completions", fields, files, isStream: true, value };
  }
  const fields = { model: name };
  if (task.nested) fields[task.field] = { ...value, ...settings.read() };
  else Object.assign(fields, settings.read(), value === undefined ? {} : { [task.field]: value });
  return { path: "v1/predict", fields, files, isStream: false, value };
}

// --- a form and its answer ---

function makeTask(name, schema, task) {
  const output = h(
    "div",
    { class: "answer", "aria-live": "polite", "aria-atomic": "false" },
    h("p", { class: "empty" }, document.querySelector("header .graph").cloneNode(true), "The answer appears here."),
  );
  const note = h("p", { class: "quiet facts" });
  const result = h("section", { class: "result", "aria-label": "Answer" }, output, note);
  const settings = makeSettings(schema, task);
  const run = h("button", { type: "submit", class: "primary" }, task.title);
  const cancel = h("button", { type: "button", class: "stop", hidden: true, onclick: () => running?.abort() }, "Stop");
  const submit = () => answer(name, task, makeRequest(name, task, input, settings), output, note);
  const isMedia = ["image", "sound"].includes(task.kind);
  const input = makeInput(
    task,
    schema.properties[task.field],
    () => isMedia && form.requestSubmit(),
    makeListener(name, task, output),
  );
  const lens = h(
    "button",
    {
      type: "button",
      hidden: !schema.lens || UNSEEN.includes(task.kind),
      onclick: () => openLens(name, task, input, lens).catch((error) => showError(output, error)),
    },
    "Look inside",
  );
  const form = h(
    "form",
    { class: "card", novalidate: true },
    input.element,
    settings.front,
    makeExamples(
      task,
      input,
      () => form.requestSubmit(),
      isMedia && (() => answer(name, task, exampleRequest(name, task), output, note)),
    ),
    settings.back,
    h(
      "p",
      { class: "actions" },
      run,
      cancel,
      h("span", { class: "grow" }),
      lens,
      makeCopy(() => makeRequest(name, task, input, settings)),
    ),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    run.disabled = true;
    cancel.hidden = false;
    if (document.activeElement === run) result.scrollIntoView({ block: "nearest" }); // below the form on a phone
    try {
      await submit();
    } catch (error) {
      showError(output, error);
    }
    run.disabled = false;
    cancel.hidden = true;
  });
  if (input.isLive) input.element.addEventListener("change", () => form.requestSubmit()); // a row is answered as it changes
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    if (event.key === "Escape") running?.abort();
  });
  if (task.examples.length) input.fill(task.examples[0]);
  return h("div", { class: "two" }, form, result);
}

/** A request without an input is answered with the examples that are kept with the model. */
const exampleRequest = (name, task) => ({
  path: "v1/predict",
  fields: { model: name, [task.field]: null },
  files: [],
  isStream: false,
});

/** Examples to choose from; of files, those that are kept with the model. */
function makeExamples(task, input, submit, askForExamples) {
  const words = (value) => (typeof value === "string" ? value.trim() : "");
  const choices = task.examples.slice(0, 4);
  const buttons = choices.map((value, i) =>
    h(
      "button",
      {
        type: "button",
        class: "chip",
        onclick: () => {
          input.fill(value);
          submit();
        },
      },
      words(value).slice(0, 60) || `Example ${i + 1}`,
    ),
  );
  if (askForExamples)
    buttons.push(h("button", { type: "button", class: "chip", onclick: askForExamples }, "Examples of the model"));
  const isWorth = askForExamples || choices.length > 1;
  return h("p", { class: "chips", hidden: !isWorth }, h("span", { class: "quiet" }, "Try "), buttons);
}

function showError(output, error) {
  if (error.name === "AbortError") return;
  output.replaceChildren(h("p", { class: "notice", role: "alert" }, error.message));
}

/** Ask, and draw what comes back; a request that is running is given up for this one. */
async function answer(name, task, request, output, note) {
  running?.abort();
  const controller = (running = new AbortController());
  const begin = performance.now();
  document.body.classList.add("busy");
  output.setAttribute("aria-busy", "true");
  note.textContent = "";
  const seconds = () => formatTime(performance.now() - begin);
  try {
    if (request.isStream) {
      const tokens = await showStream(request, output, controller.signal);
      const rate = tokens && ` · ${format((1000 * tokens) / (performance.now() - begin))} tokens a second`;
      note.textContent = tokens ? `${format(tokens)} tokens in ${seconds()}${rate}` : seconds();
    } else {
      const body = makeBody(request.fields, request.files);
      const result = await withKey(() => getJson(request.path, body, controller.signal));
      output.replaceChildren(...drawAnswer(task.output, result, request.value));
      note.textContent = seconds();
    }
  } catch (error) {
    if (running !== controller) return; // a newer answer has its place
    if (error.name === "AbortError") note.textContent = `stopped after ${seconds()}`;
    else showError(output, error);
  } finally {
    if (running === controller) {
      document.body.classList.remove("busy");
      output.removeAttribute("aria-busy");
    }
  }
}

/** Write completions as they grow; returns the number of tokens. */
async function showStream(request, output, signal) {
  const texts = [];
  output.replaceChildren();
  const events = await withKey(async () => {
    const source = stream(request.path, request.fields, signal);
    return { first: await source.next(), source };
  });
  let tokens = 0;
  const take = (event) => {
    tokens = event.usage?.completion_tokens ?? tokens;
    for (const choice of event.choices ?? []) {
      texts[choice.index] ??= output.appendChild(drawText(request.value, "")).lastChild;
      texts[choice.index].textContent += choice.text ?? "";
      if (choice.notes?.length) texts[choice.index].parentElement.after(drawNotes(choice.notes));
    }
  };
  if (!events.first.done) take(events.first.value);
  for await (const event of events.source) take(event);
  return tokens;
}

/** Transcribe what was recorded so far, while the recording goes on: one request at a time. */
function makeListener(name, task, output) {
  let isAsking = false;
  return async (makeFile) => {
    if (isAsking) return;
    isAsking = true;
    try {
      const result = await getJson("v1/predict", makeBody({ model: name }, [[task.field, makeFile()]]));
      const isRecording = document.querySelector("button[aria-pressed='true']"); // else the whole has been sent
      if (isRecording) output.replaceChildren(...drawAnswer(task.output, result));
    } catch {
      // the next one, or the end of the recording, says what is wrong
    }
    isAsking = false;
  };
}

// --- the same elsewhere, and inside ---

function makeCopy(getRequest) {
  const copy = (make) => async (event) => {
    const button = event.currentTarget;
    const text = make(getRequest());
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      showSnippet(text); // browsers allow it on https and localhost only
    }
    setTimeout(() => (button.textContent = button.dataset.name), 1500);
  };
  const make = (label, format) =>
    h(
      "button",
      {
        type: "button",
        class: "link",
        "data-name": label,
        title: `Copy this request as ${label}`,
        onclick: (event) => copy(format)(event).catch((error) => showSnippet(error.message)),
      },
      label,
    );
  return h(
    "span",
    { class: "copy" },
    h("span", { class: "quiet" }, "Copy as "),
    make("curl", makeCurl),
    make("Python", makePython),
  );
}

function showSnippet(text) {
  const dialog = h(
    "dialog",
    { class: "snippet" },
    h("pre", { class: "code", tabindex: 0 }, text),
    h("form", { method: "dialog" }, h("p", { class: "actions" }, h("button", { class: "primary" }, "Close"))),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** Show the lens on what is in the form. It is a document of its own, in a frame that can do nothing to this page. */
async function openLens(name, task, input, button) {
  const { value, files } = input.read();
  button.disabled = true;
  document.body.classList.add("busy");
  try {
    const body = makeBody({ model: name, ...(value === undefined ? {} : { input: value }) }, files);
    const response = await withKey(() => send("v1/lens", body));
    response.body.cancel(); // it is read by the frame
    const frame = h("iframe", {
      sandbox: "allow-scripts",
      title: `Inside ${name}`,
      src: response.headers.get("location"),
    });
    const dialog = h(
      "dialog",
      { class: "lens", "aria-label": `Inside ${name}` },
      h("form", { method: "dialog" }, h("button", { class: "close" }, "Close")),
      frame,
    );
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  } finally {
    button.disabled = false;
    document.body.classList.remove("busy");
  }
}

// --- a conversation ---

function makeChatTask(name, schema, task) {
  const settings = makeSettings(schema, task);
  const read = (messages) => ({
    path: "v1/chat/completions",
    files: [],
    isStream: true,
    fields: { model: name, messages, ...toCompletion(settings.read(ALWAYS_SENT)) },
  });
  const ask = async function* (messages) {
    running?.abort();
    running = new AbortController();
    const request = read(messages);
    const source = stream(request.path, request.fields, running.signal);
    const first = await withKey(() => source.next());
    if (!first.done) yield first.value;
    yield* source;
  };
  return makeChat(
    ask,
    () => running?.abort(),
    settings.back,
    (messages) => makeCopy(() => read(messages())),
  );
}

start().catch(showFailure);
