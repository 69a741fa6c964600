// The lens draws what `build_lens` measured. No library, no request.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const state = {part: 0, layer: 0, head: -1, node: 0, mode: "weights"};
const WINDOW = 36, ROW = 18;  // nodes of the rails, pixels of each
const KINDS = ["--c0", "--c1", "--c2", "--c3", "--c4"];

// --- small helpers ---

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function decode(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}
const shorts = text => new Uint16Array(decode(text).buffer);  // little-endian, as all browsers are
const show = label => !/^\s|\s$|[\n\t]/.test(label) ? label : label.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
const number = x => x === null ? "–" : Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en")
  : Math.abs(x) < 0.0005 ? (x === 0 ? "0" : x.toExponential(0)) : Number(x.toPrecision(3)).toString();
let colors = {};
function readColors() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["--paper", "--ink", "--muted", "--hair", ...KINDS]) {
    const hex = style.getPropertyValue(name).trim().slice(1);
    colors[name] = [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16));
  }
}
const mix = (a, b, t) => a.map((x, i) => Math.round(x + (b[i] - x) * t));
const css = (color, alpha = 1) => `rgb(${color.join(" ")} / ${alpha})`;
function tint(share, name = "--c0") { return css(mix(colors["--paper"], colors[name], Math.min(1, Math.max(0, share)))); }
const pixel = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;
const scale = name => Uint32Array.from({length: 256}, (_, i) => pixel(mix(colors["--paper"], colors[name], i / 255)));
function ink(share, name = "--c0") {  // readable on a tint
  const [r, g, b] = mix(colors["--paper"], colors[name], share), paper = colors["--paper"], dark = colors["--ink"];
  const light = ([x, y, z]) => 0.3 * x + 0.59 * y + 0.11 * z, own = light([r, g, b]);
  return css(Math.abs(light(paper) - own) > Math.abs(light(dark) - own) ? paper : dark);
}
function sizeCanvas(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1, context = canvas.getContext("2d");
  canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}
function tip(x, y, text) {
  const box = $("tip");
  box.textContent = text; box.hidden = false;
  box.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - box.offsetWidth - 8))}px`;
  box.style.top = `${y + 16 + box.offsetHeight > innerHeight ? y - box.offsetHeight - 8 : y + 16}px`;
}
function roam(table) {  // one stop of the tab key; arrow keys go from button to button
  const buttons = [...table.querySelectorAll("button")];
  buttons.forEach((button, i) => { button.tabIndex = i ? -1 : 0; });
  table.onkeydown = event => {
    const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key], cell = event.target.closest("td");
    if (!move || !cell) return;
    event.preventDefault();
    const row = cell.parentElement, next = table.rows[row.rowIndex + move[0]]?.cells[cell.cellIndex + move[1]]?.querySelector("button");
    if (!next) return;
    event.target.tabIndex = -1; next.tabIndex = 0; next.focus();
  };
}
function hideTip() { $("tip").hidden = true; }

// --- weights, rules, hops ---

const part = () => data.attention[state.part];
const stackOf = () => data.stacks[part().query];
const keysOf = () => data.stacks[part().key];
const partName = p => p.kind === "cross" ? `${data.stacks[p.query].name} reads ${data.stacks[p.key].name}`
  : data.attention.length > 1 ? `${data.stacks[p.query].name} reads itself` : data.stacks[p.query].name || "stack";
const unpacked = new Map();
function unpack(p, layer) {
  const key = `${data.attention.indexOf(p)}.${layer}`;
  if (!unpacked.has(key)) {
    if (unpacked.size > 3) unpacked.delete(unpacked.keys().next().value);
    const packed = p.layers[layer];
    unpacked.set(key, {values: decode(packed.values), top: shorts(packed.top),
      indices: packed.indices ? shorts(packed.indices) : null});
  }
  return unpacked.get(key);
}
function addRow(out, start, p, weights, head, query, share) {
  const queries = data.stacks[p.query].labels.length, row = head * queries + query;
  const unit = weights.top[row] / (65535 * 255) * share, first = row * p.kept;
  if (weights.indices) for (let i = 0; i < p.kept; i++) out[start + weights.indices[first + i]] += weights.values[first + i] * unit;
  else for (let k = 0; k < p.kept; k++) out[start + k] += weights.values[first + k] * unit;
}
function weightRow(query, p = part(), layer = state.layer, head = state.head) {
  const out = new Float32Array(data.stacks[p.key].labels.length), weights = unpack(p, layer);
  if (head >= 0) addRow(out, 0, p, weights, head, query, 1);
  else for (let h = 0; h < p.heads; h++) addRow(out, 0, p, weights, h, query, 1 / p.heads);
  return out;
}
let matrixKey = "", matrixValues = null;
function weightMatrix() {
  const key = `${state.part}.${state.layer}.${state.head}`;
  if (key !== matrixKey) {
    const p = part(), keys = keysOf().labels.length, queries = stackOf().labels.length, weights = unpack(p, state.layer);
    matrixValues = new Float32Array(queries * keys); matrixKey = key;
    for (let q = 0; q < queries; q++)
      if (state.head >= 0) addRow(matrixValues, q * keys, p, weights, state.head, q, 1);
      else for (let h = 0; h < p.heads; h++) addRow(matrixValues, q * keys, p, weights, h, q, 1 / p.heads);
  }
  return matrixValues;
}
const bits = new Map();
function mask(rule, keys) {
  if (!bits.has(rule)) bits.set(rule, decode(rule.bits));
  const bytes = bits.get(rule), width = Math.ceil(keys / 8);
  return (q, k) => (bytes[q * width + (k >> 3)] >> (7 - (k & 7))) & 1;
}
const layerRule = (stack, layer) => stack.rules[stack.layer_rules[layer]];
function currentRule() { return part().kind === "cross" ? part().rule : layerRule(stackOf(), state.layer); }
function mayRead() { return mask(currentRule(), keysOf().labels.length); }

// The fewest messages from each node to what `cost` says of the nodes at the top; -1 where none arrives. Layer by layer
// from the top: a node costs one more than the cheapest that may read it. With a cross-attention, of the memory instead.
function countHops(stack, cost, cross = null) {
  const memory = cross ? new Array(data.stacks[cross.key].labels.length).fill(Infinity) : null;
  for (let layer = stack.layer_rules.length - 1; layer >= 0; layer--) {
    if (cross) spread(cost, memory, mask(cross.rule, memory.length));
    const before = cost.slice();
    spread(cost, before, mask(layerRule(stack, layer), cost.length));
    cost = before;
  }
  return cross ? memory : cost;
}
function spread(cost, into, reads) {
  for (let q = 0; q < cost.length; q++)
    if (cost[q] < Infinity) for (let k = 0; k < into.length; k++) if (cost[q] + 1 < into[k] && reads(q, k)) into[k] = cost[q] + 1;
}
function hopsTo(node, p = part()) {
  let cost = new Array(data.stacks[p.query].labels.length).fill(Infinity);
  cost[node] = 0;
  cost = p.kind === "cross" ? countHops(data.stacks[p.key], countHops(data.stacks[p.query], cost, p)) : countHops(data.stacks[p.query], cost);
  return cost.map(x => x === Infinity ? -1 : x);
}
let values = new Float32Array(0);  // of each node that is read, from 0 to 1; set whenever something is chosen
function currentValues() {
  if (state.mode === "weights") return weightRow(state.node);
  const keys = keysOf().labels.length;
  if (state.mode === "rule") { const reads = mayRead(); return Float32Array.from({length: keys}, (_, k) => reads(state.node, k)); }
  return Float32Array.from(hopsTo(state.node), hops => hops < 0 ? 0 : 1 / (1 + hops));
}

// The value that gets the full color: the largest, or four times what each would have if all were read alike.
function fullColor(values) {
  const open = values.reduce((count, value) => count + (value > 0), 0);
  return state.mode === "weights" ? Math.max(...values, Math.min(1, 4 / Math.max(1, open)), 1e-9) : Math.max(...values, 1e-9);
}

// --- nodes as what they are ---

const pictures = new Map();
function pictureOf(stack) {
  if (!stack.picture) return null;
  if (!pictures.has(stack)) {
    const {rows, columns, channels, pixels} = stack.picture, bytes = decode(pixels), image = new ImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = bytes[channels * i + (channels === 3 ? c : 0)];
      image.data[4 * i + 3] = 255;
    }
    const canvas = element("canvas", {width: columns, height: rows});
    canvas.getContext("2d").putImageData(image, 0, 0);
    pictures.set(stack, canvas);
  }
  return pictures.get(stack);
}
const kindColor = (stack, i) => KINDS[[...new Set(stack.kinds)].indexOf(stack.kinds[i]) % KINDS.length];
const isMedia = stack => stack.picture || stack.series.length;

function drawNode(context, stack, i, x, y, size) {  // a small picture of a node
  const box = stack.boxes[i];
  if (stack.picture && box) {
    const step = stack.picture.step;
    context.imageSmoothingEnabled = false;
    context.drawImage(pictureOf(stack), box[0] / step, box[1] / step, Math.max(1, box[2] / step), Math.max(1, box[3] / step), x, y, size, size);
  } else if (stack.series.length && box) {
    drawSeries(context, stack.series.slice(box[0], box[0] + box[2]), x, y, size, size, stack.series);
  } else {
    context.fillStyle = css(colors[kindColor(stack, i)]);
    context.fillRect(x + size / 2 - 3, y + size / 2 - 3, 6, 6);
  }
}
function drawSeries(context, values, x, y, width, height, range) {
  const low = Math.min(...range), high = Math.max(...range) || 1;
  context.strokeStyle = css(colors["--ink"]); context.lineWidth = 1.2; context.beginPath();
  values.forEach((value, i) => context.lineTo(x + (i + 0.5) * width / values.length, y + height - (value - low) / (high - low || 1) * height));
  context.stroke();
}
class NodesView {  // the whole input of a stack; `paint` colors what is read
  constructor(stack, onpick) {
    this.stack = stack; this.onpick = onpick; this.values = null; this.chosen = -1;
    this.root = element("div", {class: "input"});
    if (data.stacks.length > 1) this.root.append(element("p", {class: "note input-name"}, stack.name));
    if (isMedia(stack)) this.buildCanvas();
    const outside = stack.labels.map((_, i) => i).filter(i => !isMedia(stack) || !stack.boxes[i]);
    this.spans = new Map();
    if (outside.length) this.buildTokens(outside);
  }
  buildTokens(indices) {
    const isText = this.stack.kinds.every(kind => kind === "token");
    const list = element("div", {class: isText ? "tokens" : "tokens chips"});
    for (const i of indices) {
      const span = element("span", {"data-i": i}, isText ? show(this.stack.labels[i]) : this.stack.labels[i]);
      if (!isText) span.style.borderLeftColor = `var(${kindColor(this.stack, i)})`;
      if (isText && this.stack.labels[i].endsWith("\n")) span.append("\n");
      this.spans.set(i, span); list.append(span);
    }
    list.addEventListener("click", event => { const span = event.target.closest("[data-i]"); if (span) this.onpick(+span.dataset.i); });
    list.addEventListener("pointermove", event => {
      const span = event.target.closest("[data-i]");
      if (span) tip(event.clientX, event.clientY, this.describe(+span.dataset.i)); else hideTip();
    });
    list.addEventListener("pointerleave", hideTip);
    this.root.append(list);
  }
  buildCanvas() {
    this.canvas = element("canvas");
    this.root.append(this.canvas);
    const find = event => {
      const box = this.canvas.getBoundingClientRect();
      const x = (event.clientX - box.left) / this.scale[0], y = (event.clientY - box.top) / this.scale[1];
      return this.stack.boxes.findIndex(b => b && x >= b[0] && x < b[0] + b[2] && y >= b[1] && y < b[1] + b[3]);
    };
    this.canvas.addEventListener("click", event => { const i = find(event); if (i >= 0) this.onpick(i); });
    this.canvas.addEventListener("pointermove", event => { const i = find(event); if (i >= 0) tip(event.clientX, event.clientY, this.describe(i)); else hideTip(); });
    this.canvas.addEventListener("pointerleave", hideTip);
  }
  describe(i) {
    const label = `${i} ${show(this.stack.labels[i])} (${this.stack.kinds[i]})`;
    if (!this.values) return label;
    if (state.mode === "weights") return `${label}: ${number(this.values[i])}`;
    if (state.mode === "rule") return `${label}: ${this.values[i] ? "may be read" : "may not be read"}`;
    return `${label}: ${this.values[i] ? `${Math.round(1 / this.values[i] - 1)} hops` : "never arrives"}`;
  }
  paint(values, chosen) {
    this.values = values; this.chosen = chosen;
    const top = values ? fullColor(values) : 1;
    for (const [i, span] of this.spans) {
      const share = values ? values[i] / top : 0;
      span.style.background = share > 0.02 ? tint(0.85 * share, "--c1") : "";
      span.style.color = share > 0.02 ? ink(0.85 * share, "--c1") : "";
      span.classList.toggle("chosen", i === chosen);
      const list = span.parentElement, y = span.offsetTop - list.scrollTop;
      if (i === chosen && (y < 0 || y > list.clientHeight - 20)) list.scrollTop = span.offsetTop - list.clientHeight / 2;
    }
    if (this.canvas) this.paintCanvas(values, top, chosen);
  }
  paintCanvas(values, top, chosen) {
    const {picture, series, boxes} = this.stack, room = Math.max(200, this.root.clientWidth || 320);
    const isWide = !picture || picture.width > 2.5 * picture.height;
    const width = isWide ? Math.min(room, picture ? 8 * picture.width : room) : Math.min(room, 320);
    const height = !picture ? 120 : isWide ? 120 : width * picture.height / picture.width;
    this.scale = [width / (picture ? picture.width : series.length), picture ? height / picture.height : height];
    this.canvas.style.width = `${width}px`;
    const context = sizeCanvas(this.canvas, width, height), [sx, sy] = this.scale;
    context.imageSmoothingEnabled = false;
    if (picture) context.drawImage(pictureOf(this.stack), 0, 0, width, height);
    else drawSeries(context, series, 0, 6, width, height - 12, series);
    boxes.forEach((box, i) => {
      if (!box) return;
      const area = [box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy];
      if (values) {
        context.fillStyle = css(colors["--c1"], 0.75 * values[i] / top);
        context.fillRect(...area);
      }
      context.lineWidth = 0.5; context.strokeStyle = css(colors["--muted"], area[2] > 5 ? 0.6 : 0.15);
      context.strokeRect(...area);
    });
    if (chosen >= 0 && boxes[chosen]) {
      const [x, y, w, h] = boxes[chosen];
      context.lineWidth = 2.5; context.strokeStyle = css(colors["--c0"]);
      context.strokeRect(x * sx + 1, y * sy + 1, Math.max(2, w * sx - 2), h * sy - 2);
    }
  }
}
let views = [];
function buildInputs() {
  const indices = [...new Set([part().key, part().query])];
  views = indices.map(index => ({index, view: new NodesView(data.stacks[index], i => pick(index, i))}));
  $("inputs").replaceChildren(...views.map(({view}) => view.root));
}
function pick(stack, node) { if (stack === part().query) choose({node}); }

// --- the graph ---

function visibleNodes(count, center) {
  const first = Math.max(0, Math.min(center - WINDOW / 2, count - WINDOW));
  return Array.from({length: Math.min(count, WINDOW)}, (_, i) => Math.floor(first) + i);
}
let rails = null;
function drawRails() {
  const keys = keysOf(), queries = stackOf(), isSelf = part().kind === "attn";
  const best = values.indexOf(Math.max(...values));
  const left = visibleNodes(keys.labels.length, isSelf ? state.node : best), right = visibleNodes(queries.labels.length, state.node);
  const canvas = $("rails"), width = canvas.clientWidth || 320, height = Math.max(left.length, right.length) * ROW + 4;
  const context = sizeCanvas(canvas, width, height), side = Math.min(150, width * 0.34);
  const y = index => index * ROW + ROW / 2 + 2;
  const reads = mayRead(), alpha = state.mode === "weights" ? 0.35 : 0.12;
  rails = {left, right};
  right.forEach((q, j) => {
    if (q === state.node || state.mode === "hops") return;
    const row = state.mode === "weights" ? weightRow(q) : null;
    left.forEach((k, i) => {
      const share = row ? row[k] : reads(q, k);
      if (share > 0.03) drawEdge(context, side, width - side, y(i), y(j), css(colors["--muted"], alpha * share), 0.5 + 1.5 * share);
    });
  });
  const j = right.indexOf(state.node), top = fullColor(values);
  left.forEach((k, i) => {
    const share = values[k] / top;
    if (share > 0.02) drawEdge(context, side, width - side, y(i), y(j), css(colors["--c1"], 0.15 + 0.85 * share), 0.5 + 2.5 * share);
  });
  const size = ROW - 4, hops = state.mode === "hops" ? values.map(v => v ? Math.round(1 / v - 1) : -1) : null;
  left.forEach((k, i) => {
    drawNode(context, keys, k, side - size, y(i) - size / 2, size);
    drawLabel(context, show(keys.labels[k]) + (hops ? hops[k] < 0 ? "  –" : `  ${hops[k]}` : ""), side - size - 5, y(i), side - size - 8, "right", values[k] > 0.5 * top);
  });
  right.forEach((q, i) => {
    drawNode(context, queries, q, width - side, y(i) - size / 2, size);
    drawLabel(context, show(queries.labels[q]), width - side + size + 5, y(i), side - size - 8, "left", q === state.node);
  });
  const shown = keys.labels.length > left.length || queries.labels.length > right.length ? `, ${left.length} of ${keys.labels.length} nodes` : "";
  $("rails-caption").textContent = `left: read, right: reading${shown} · rule: ${currentRule().name}`;
}
function drawEdge(context, x0, x1, y0, y1, color, width) {
  const middle = (x0 + x1) / 2;
  context.strokeStyle = color; context.lineWidth = width;
  context.beginPath(); context.moveTo(x0 + 2, y0); context.bezierCurveTo(middle, y0, middle, y1, x1 - 2, y1); context.stroke();
}
function drawLabel(context, text, x, y, room, align, isStrong) {
  context.font = `${isStrong ? "600 " : ""}12px system-ui, sans-serif`;
  context.textAlign = align; context.textBaseline = "middle";
  context.fillStyle = css(colors[isStrong ? "--ink" : "--muted"]);
  while (text.length > 1 && context.measureText(text).width > room) text = text.slice(0, -2) + "…";
  context.fillText(text, x, y);
}
function drawMatrix() {
  const canvas = $("matrix"), keys = keysOf().labels.length, queries = stackOf().labels.length;
  const weights = state.mode === "weights" ? weightMatrix() : null, rule = currentRule(), width = Math.ceil(keys / 8);
  mayRead();
  canvas.width = keys; canvas.height = queries;
  canvas.style.imageRendering = "pixelated";
  canvas.style.height = "auto"; canvas.style.aspectRatio = `${keys} / ${Math.max(queries, keys / 8)}`;
  const context = canvas.getContext("2d"), image = context.createImageData(keys, queries), pixels = new Uint32Array(image.data.buffer);
  const [others, chosen, closed, open] = [scale("--c0"), scale("--c1"), pixel(colors["--hair"]), bits.get(rule)];
  for (let q = 0, i = 0; q < queries; q++) {
    let top = 1e-9, count = 0;
    if (weights) for (let k = 0; k < keys; k++) if (weights[i + k] > 0) { count++; if (weights[i + k] > top) top = weights[i + k]; }
    top = Math.max(top, Math.min(1, 2 / Math.max(1, count)));
    const palette = q === state.node ? chosen : others;
    for (let k = 0; k < keys; k++, i++) {
      const share = weights ? (255 * Math.sqrt(weights[i] / top)) | 0 : 150;
      pixels[i] = (open[q * width + (k >> 3)] >> (7 - (k & 7))) & 1 ? palette[share] : closed;
    }
  }
  context.putImageData(image, 0, 0);
}
function describeEdge(q, k) {
  const from = show(keysOf().labels[k]), to = show(stackOf().labels[q]);
  if (!mayRead()(q, k)) return `${to} may not read ${from}`;
  return `${to} reads ${from}: ${number(weightRow(q)[k])}`;
}
function readOut() {
  const labels = keysOf().labels, name = show(stackOf().labels[state.node]);
  const order = [...values.keys()].filter(k => values[k] > 0).sort((a, b) => values[b] - values[a]);
  const title = element("b", {}, `${state.node} ${name}`);
  if (state.mode === "weights") {
    const items = order.slice(0, 8).map(k => element("span", {}, `${show(labels[k])} `, element("i", {}, number(values[k]))));
    const total = part().kept < labels.length ? ` (the ${part().kept} largest are kept: ${number(values.reduce((a, b) => a + b, 0))} of all)` : "";
    $("readout").replaceChildren(title, items.length ? " reads " : " reads nothing", ...items, total);
  } else if (state.mode === "rule") {
    $("readout").replaceChildren(title, ` may read ${order.length} of ${labels.length} nodes in this layer: ${currentRule().name}`);
  } else {
    const hops = order.map(k => Math.round(1 / values[k] - 1)), counts = new Map();
    hops.forEach(n => counts.set(n, (counts.get(n) || 0) + 1));
    const text = [...counts].sort((a, b) => a[0] - b[0]).map(([n, c]) => `${n} hops: ${c}`).join(", ");
    $("readout").replaceChildren(title, ` is reached by ${order.length} of ${labels.length} nodes through all layers (${text})`);
  }
}

// --- choosing ---

function choose(changes) {
  const before = {...state};
  Object.assign(state, changes);
  if (state.part !== before.part) { fillControls(); buildInputs(); buildHeads(); }
  const last = stackOf().labels.length - 1;
  state.node = Math.max(0, Math.min(state.node, last));
  state.layer = Math.min(state.layer, part().layers.length - 1);
  $("layer").value = state.layer + 1; $("head").value = state.head; $("node").value = state.node;
  $("layer-text").textContent = `${state.layer + 1} of ${part().layers.length}`;
  $("node-text").textContent = `${state.node} ${show(stackOf().labels[state.node])}`;
  drawGraph();
}
function drawGraph() {
  values = currentValues();
  for (const {index, view} of views) view.paint(index === part().key ? values : null, index === part().query ? state.node : -1);
  drawRails(); drawMatrix(); readOut(); markHead();
}
function fillControls() {
  const p = part();
  $("part").replaceChildren(...data.attention.map((q, i) => element("option", {value: i}, partName(q))));
  $("part").value = state.part; $("part-label").hidden = data.attention.length < 2;
  $("head").replaceChildren(element("option", {value: -1}, "mean of all"), ...Array.from({length: p.heads}, (_, h) => element("option", {value: h}, `head ${h}`)));
  state.head = Math.min(state.head, p.heads - 1);
  $("layer").max = p.layers.length; $("node").max = stackOf().labels.length - 1;
}
function listen() {
  $("controls").addEventListener("submit", event => event.preventDefault());
  $("part").onchange = event => choose({part: +event.target.value});
  $("layer").oninput = event => choose({layer: event.target.value - 1});
  $("head").onchange = event => choose({head: +event.target.value});
  $("node").oninput = event => choose({node: +event.target.value});
  for (const radio of document.querySelectorAll("[name=mode]")) radio.onchange = () => choose({mode: radio.value});
  $("summary").onchange = buildHeads;
  const rail = $("rails");
  const under = event => { const index = Math.floor((event.offsetY - 2) / ROW); return event.offsetX > rail.clientWidth / 2 ? rails.right[index] : rails.left[index]; };
  rail.addEventListener("click", event => { const i = under(event); if (i !== undefined && (part().kind === "attn" || event.offsetX > rail.clientWidth / 2)) choose({node: i}); });
  rail.addEventListener("pointermove", event => {
    const i = under(event);
    if (i === undefined) hideTip();
    else if (event.offsetX > rail.clientWidth / 2) tip(event.clientX, event.clientY, `${i} ${show(stackOf().labels[i])}`);
    else tip(event.clientX, event.clientY, describeEdge(state.node, i));
  });
  const steps = {ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -10, PageDown: 10};
  for (const canvas of [rail, $("matrix")]) {
    canvas.addEventListener("pointerleave", hideTip);
    canvas.addEventListener("keydown", event => { if (steps[event.key]) { event.preventDefault(); choose({node: state.node + steps[event.key]}); } });
  }
  const cellOf = event => {
    const box = $("matrix").getBoundingClientRect(), inside = (x, n) => Math.max(0, Math.min(n - 1, Math.floor(x * n)));
    return [inside((event.clientY - box.top) / box.height, stackOf().labels.length), inside((event.clientX - box.left) / box.width, keysOf().labels.length)];
  };
  $("matrix").addEventListener("pointermove", event => tip(event.clientX, event.clientY, describeEdge(...cellOf(event))));
  $("matrix").addEventListener("click", event => choose({node: cellOf(event)[0]}));
  let pending = 0;
  const redraw = () => { cancelAnimationFrame(pending); pending = requestAnimationFrame(drawAll); };
  addEventListener("resize", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}
