// What each kind of answer looks like. Every drawing has its numbers in words too.

import { drawBars, drawEpisode, drawForecast, drawMatrix, makePlayer } from "./charts.js";
import { format, h, percent } from "./dom.js";
import { drawTune } from "./tunes.js";

const ranked = (probabilities) => Object.entries(probabilities).sort((a, b) => b[1] - a[1]);
const truth = (result) => ("truth" in result ? h("p", { class: "quiet" }, `truth: ${format(result.truth)}`) : null);

const DRAWERS = {
  completions: (answer) =>
    answer.samples.flatMap((sample) => [
      drawText(sample.prompt, sample.text),
      ...(sample.notes?.length ? [drawNotes(sample.notes)] : []),
    ]),
  classes: (answer) => answer.results.map(drawClasses),
  targets: (answer) => answer.results.map(drawTargets),
  masks: (answer) => answer.results.map(drawMasks),
  gaps: (answer) => answer.results.map(drawGaps),
  drafts: (answer) => answer.results.map(drawDraft),
  tags: (answer) => answer.results.map(drawTags),
  translations: (answer) => answer.results.map(drawTranslation),
  transcripts: (answer) => answer.results.map(drawTranscript),
  pictures: (answer) => h("div", { class: "pictures" }, answer.results.map(drawPicture)),
  vectors: drawSimilarity,
  quantiles: (answer, asked) => answer.results.map((result) => drawSeries(result, asked)),
  actions: (answer) => answer.results.map(drawAction),
  episodes: (answer) => answer.results.map(drawReturns),
  tunes: (answer) => answer.samples.map(drawTune),
  sounds: (answer) => answer.results.map(drawSound),
};

/** Elements for an answer of `predict`; `asked` is the value that was given. */
export function drawAnswer(output, answer, asked) {
  const drawn = DRAWERS[output]?.(answer, asked) ?? [];
  return [...[drawn].flat(), drawJson(answer, !DRAWERS[output])];
}

function drawJson(answer, isOpen) {
  const text = h("pre", { class: "code", tabindex: 0 });
  const details = h("details", { class: "raw", open: isOpen }, h("summary", {}, "As JSON"), text);
  const fill = () => (text.textContent ||= JSON.stringify(answer, null, 1));
  details.addEventListener("toggle", fill); // long ones are written out only for who looks
  if (isOpen) fill();
  return details;
}

export function drawText(prompt, text) {
  return h("p", { class: "text" }, h("span", { class: "quiet" }, prompt), h("span", { class: "new" }, text));
}

/** The notes that hold at the end of a text. */
export function drawNotes(notes) {
  return h("section", {}, h("h3", {}, "Notes"), h("ul", { class: "plain" }, notes.map((text) => h("li", {}, text))));
}

const headline = (text, note) =>
  h("p", { class: "headline" }, h("span", { class: "big" }, text), note && h("span", { class: "quiet" }, note));

function drawClasses(result, name = "") {
  const title = typeof name === "string" && name ? h("h3", {}, name) : null;
  return h(
    "section",
    {},
    title,
    headline(result.label, percent(result.probability)),
    truth(result),
    drawBars(ranked(result.probabilities)),
  );
}

/** The targets of a row: one, or several by their names. */
function drawTargets(result) {
  if ("label" in result) return drawClasses(result);
  if ("value" in result) return drawNumber(result);
  return h(
    "div",
    {},
    Object.entries(result).map(([name, part]) => ("label" in part ? drawClasses(part, name) : drawNumber(part, name))),
  );
}

function drawNumber(result, name = "") {
  const intervals = Object.entries(result.interval ?? {}).map(([share, [low, high]]) =>
    h("li", {}, `${share} between ${format(low)} and ${format(high)}`),
  );
  return h(
    "section",
    {},
    typeof name === "string" && name ? h("h3", {}, name) : null,
    headline(format(result.value)),
    truth(result),
    h("ul", { class: "plain quiet" }, intervals),
  );
}

function drawMasks(result) {
  const masks = result.masks.map((ranks, i) =>
    h(
      "section",
      {},
      h("h3", {}, result.masks.length > 1 ? `Place ${i + 1}` : "Candidates"),
      drawBars(ranks.map(({ token, probability }) => [token, probability])),
    ),
  );
  const fills = result.masks.map((ranks) => ranks[0].token);
  return h(
    "div",
    {},
    h("p", { class: "text" }, markFills(result.input.split("[MASK]"), fills, result.text)),
    h("div", { class: "columns" }, masks),
  );
}

/** A text with what was filled in marked; as it is, where the pieces are not found in it (a tokenizer adds spaces). */
function markFills(pieces, fills, text) {
  const joined = pieces.map((piece, i) => piece + (fills[i] ?? "")).join("");
  if (joined !== text) return [text];
  return pieces.flatMap((piece, i) => [piece, i < fills.length ? h("mark", {}, fills[i] || "∅") : null]);
}

function drawGaps(result) {
  return h("p", { class: "text" }, markFills(result.input.split("___"), result.gaps, result.text));
}

function drawPicture(result) {
  const caption = result.input ?? "painted anew";
  const image = h("img", { alt: `drawn: ${caption}`, src: `data:image/png;base64,${result.png}` });
  return h("figure", {}, image, h("figcaption", { class: "quiet" }, caption));
}

function drawSound(result) {
  const bytes = Uint8Array.from(atob(result.wav), (character) => character.charCodeAt(0));
  const file = URL.createObjectURL(new Blob([bytes], { type: "audio/wav" }));
  const audio = h("audio", { controls: true, src: file, "aria-label": `spoken: ${result.input}` });
  const link = h("a", { href: file, download: "speech.wav" }, "speech.wav");
  return h("figure", { class: "spoken" }, audio, h("figcaption", { class: "quiet" }, `${result.input} · ${format(result.seconds)} s · `, link));
}

/** A text, and the drafts that led to it as steps: what a pass has written is marked. */
function drawDraft(result) {
  const drafts = [result.input, ...(result.drafts ?? [result.text])].filter((draft) => typeof draft === "string");
  const rows = drafts.map(wrapGrid);
  const text = h("p", { class: "text" });
  const facts = h("output", { class: "quiet" });
  const show = (step) => {
    text.replaceChildren(...markChanges(rows[Math.max(0, step - 1)], rows[step]));
    facts.textContent = `draft ${step + 1} of ${drafts.length} · the model has read it ${result.passes} times in all`;
  };
  if (!result.drafts || drafts.length < 2) return h("div", {}, h("p", { class: "text" }, result.text));
  return h("div", { class: "draft" }, text, makePlayer(drafts.length, show, "draft", Math.min(600, 6000 / drafts.length)), facts);
}

/** A square grid of digits, with `_` for those that are missing, on lines of its own; any other text as it is. */
function wrapGrid(text) {
  const side = Math.sqrt(text.length);
  const isGrid = Number.isInteger(side) && side > 3 && /^[\d_]+$/.test(text);
  return isGrid ? text.match(new RegExp(`.{${side}}`, "g")).join("\n") : text;
}

/** A text with the characters marked that differ from those before; as it is, where its length is another one. */
function markChanges(before, text) {
  const [old, now] = [[...before], [...text]];
  if (old.length !== now.length) return [text];
  const isNew = (i) => old[i] !== now[i];
  const starts = now.flatMap((_, i) => (i === 0 || isNew(i) !== isNew(i - 1) ? [i] : []));
  return starts.map((start, n) => {
    const piece = now.slice(start, starts[n + 1]).join("");
    return isNew(start) ? h("mark", {}, piece) : piece;
  });
}

/** Words in the color of their tag; B-X and I-X are parts of one span. */
function drawTags(result) {
  const kinds = [...new Set(result.words.map((word) => word.tag.replace(/^[BI]-/, "")))].filter((tag) => tag !== "O");
  const spans = [];
  for (const { word, tag, probability } of result.words) {
    const kind = tag.replace(/^[BI]-/, "");
    if (!tag.startsWith("I-") || spans.at(-1)?.kind !== kind) spans.push({ kind, words: [], facts: [] });
    spans.at(-1).words.push(word);
    spans.at(-1).facts.push(`${word}: ${tag}, ${percent(probability)}`);
  }
  const drawn = spans.flatMap(({ kind, words, facts }) => {
    if (kind === "O") return [words[0], " "];
    const css = `tag c${kinds.indexOf(kind) % 5}`;
    return [h("span", { class: css, title: facts.join("\n") }, words.join(" "), h("small", {}, kind)), " "];
  });
  return h("div", {}, h("p", { class: "text tagged" }, drawn));
}

function drawTranslation(result) {
  const source = h("p", { class: "text quiet" });
  const target = h("p", { class: "text" });
  const parts = [source, target];
  const alignment = result.alignment;
  if (!alignment) {
    source.textContent = result.input;
    target.textContent = result.text;
  } else {
    const chips = (names) => names.map((name) => h("span", { class: "token", tabindex: 0 }, name));
    const [columns, rows] = [chips(alignment.columns), chips(alignment.rows)];
    const isEnd = (chip) => chip.textContent === "·" && !chip.nextSibling; // of the text, drawn in the matrix alone
    source.append(...columns);
    target.append(...rows);
    for (const chip of [columns.at(-1), rows.at(-1)]) if (chip && isEnd(chip)) chip.remove();
    const light = (row) =>
      columns.forEach((chip, i) => chip.style.setProperty("--weight", row == null ? 0 : alignment.weights[row][i]));
    rows.forEach((chip, i) => {
      for (const event of ["pointerenter", "focus"]) chip.addEventListener(event, () => light(i));
      for (const event of ["pointerleave", "blur"]) chip.addEventListener(event, () => light(null));
    });
    const say = (y, x, weight) => `${alignment.rows[y]} reads ${percent(weight)} from ${alignment.columns[x]}`;
    parts.push(
      h("h3", {}, "Alignment"),
      h("p", { class: "quiet" }, "What each word of the translation (a row) reads of the source."),
      drawMatrix(alignment.weights, alignment.rows, alignment.columns, say),
    );
  }
  const others = (result.candidates ?? [])
    .slice(1)
    .map((other) => h("li", {}, other.text, h("span", { class: "quiet" }, ` ${format(other.score)}`)));
  if (others.length) parts.splice(2, 0, h("h3", {}, "Others"), h("ol", { start: 2 }, others));
  return h("div", {}, parts);
}

function drawTranscript(result) {
  return h(
    "div",
    {},
    h("p", { class: "text" }, ...(result.words ? drawTimedWords(result.words) : [result.text || "—"])),
    h("p", { class: "quiet" }, `${format(result.seconds)} seconds of sound`),
  );
}

function drawTimedWords(words) {
  const time = (seconds) => seconds.toFixed(2);
  return words.map(({ word, start, end }) => h("span", { title: `${time(start)} to ${time(end)} seconds` }, `${word} `));
}

function drawSimilarity(answer, texts) {
  const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
  const { vectors } = answer;
  const values = vectors.map((a) => vectors.map((b) => dot(a, b)));
  const pairs = vectors
    .flatMap((_, i) => vectors.slice(0, i).map((_, j) => [values[i][j], j, i]))
    .sort((a, b) => b[0] - a[0]);
  const words = (text) => (text.length > 22 ? `${text.slice(0, 21)}…` : text);
  const best = pairs[0]
    ? headline(format(pairs[0][0]), `“${words(texts[pairs[0][1]])}” and “${words(texts[pairs[0][2]])}” are closest`)
    : null;
  const names = texts.map(words);
  return [
    h(
      "div",
      {},
      best,
      drawMatrix(values, names, names, (y, x, value) => `${names[y]} · ${names[x]}: ${format(value)}`),
      h("p", { class: "quiet" }, `cosine of vectors of ${vectors[0]?.length ?? 0} numbers`),
    ),
  ];
}

function drawSeries(result, asked) {
  return h(
    "section",
    {},
    h("h3", {}, result.series),
    drawForecast(result, findPast(asked, result.series)),
    h("details", {}, h("summary", {}, "As a table"), drawTable(result)),
  );
}

/** The numbers of the series before the forecast, as far as the request holds them. */
function findPast(asked, name) {
  if (!Array.isArray(asked)) return [];
  if (asked.every((value) => typeof value === "number")) return asked;
  if (asked.every(Array.isArray)) return asked[Number(/^series (\d+)$/.exec(name)?.[1] ?? 1) - 1] ?? [];
  const column = asked.map((row) => row?.[name]);
  return column.filter((value) => typeof value === "number");
}

function drawTable(result) {
  const levels = Object.keys(result.quantiles);
  const rows = result.median.map((median, i) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, String((result.times ?? result.steps)[i])),
      h("td", {}, format(median)),
      levels.map((level) => h("td", {}, format(result.quantiles[level][i]))),
    ),
  );
  const head = ["", "median", ...levels].map((name) => h("th", { scope: "col" }, name));
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)));
}

function drawAction(result) {
  const action = Array.isArray(result.action) ? result.action.map(format).join(", ") : String(result.action);
  const bars = (result.probabilities ?? []).map((share, i) => [`action ${i}`, share]).sort((a, b) => b[1] - a[1]);
  return h("section", {}, headline(`action ${action}`), truth(result), bars.length ? drawBars(bars) : null);
}

/** The returns of some episodes beside the one to reach, and the first of them as it plays. */
function drawReturns(result) {
  const mean =
    result.episodes > 1
      ? `mean of ${result.episodes} episodes, ${format(result.low)} to ${format(result.high)}`
      : "one episode";
  return h(
    "section",
    {},
    headline(format(result.achieved), `reached of ${format(result.wanted)} · ${mean}`),
    result.trace ? drawEpisode(result) : null,
  );
}
