// The heads, the logit lens, and what changes the answer; `graph.js` comes before.

const SUMMARIES = {
  none: "darker for larger weights, of the part with the largest",
  previous: "the weight on the node before", first: "the weight on the first node", self: "the weight on the node itself",
  same: "the weight on other nodes with the same label", induction: "the weight on what followed the same label before",
  "prefix matching": "the same in random tokens that repeat: high for induction heads (2209.11895)",
  entropy: "in nats: 0 where one node is read, the logarithm of their number where all are read alike",
  distance: "to the nodes that are read, in nodes",
};

// --- heads ---

let headButtons = new Map();
function buildHeads() {
  const p = part(), [height, width] = p.thumbnail_shape, bytes = decode(p.thumbnails), blues = scale("--c0"), names = ["none", ...Object.keys(p.summaries)];
  const chosen = names.includes($("summary").value) ? $("summary").value : names.includes("previous") && stackOf().kinds.includes("token") ? "previous" : "entropy";
  $("summary").replaceChildren(...names.map(name => element("option", {value: name}, name)));
  $("summary").value = chosen;
  $("summary-note").textContent = SUMMARIES[chosen] || "";
  const table = p.summaries[chosen], all = table ? table.flat().filter(x => x !== null) : [], top = Math.max(...all, 1e-9);
  headButtons = new Map();
  const head = element("thead", {}, element("tr", {}, element("th", {}, ""), ...Array.from({length: p.heads}, (_, h) => element("th", {scope: "col"}, `${h}`))));
  const rows = p.layers.map((_, layer) => element("tr", {}, element("th", {scope: "row"}, `layer ${layer + 1}`),
    ...Array.from({length: p.heads}, (_, h) => {
      const value = table ? table[layer][h] : null, canvas = element("canvas", {width, height});
      const image = new ImageData(width, height), start = (layer * p.heads + h) * width * height;
      const pixels = new Uint32Array(image.data.buffer);
      for (let i = 0; i < width * height; i++) pixels[i] = blues[bytes[start + i]];
      canvas.getContext("2d").putImageData(image, 0, 0);
      const button = element("button", {type: "button", "aria-label": `layer ${layer + 1}, head ${h}${table ? `: ${chosen} ${number(value)}` : ""}`,
        onclick: () => choose({layer, head: h})}, canvas, table ? number(value) : "");
      if (table && value !== null) button.style.background = tint(0.45 * value / top, "--c2");
      headButtons.set(`${layer}.${h}`, button);
      return element("td", {}, button);
    })));
  $("heads").replaceChildren(head, element("tbody", {}, ...rows));
  roam($("heads"));
  markHead();
}
function markHead() {
  for (const [key, button] of headButtons) button.classList.toggle("chosen", key === `${state.layer}.${state.head}`);
}

// --- logit lens ---

const lastStack = () => data.stacks[data.stacks.length - 1];
const hasNode = row => row.node !== null && row.node !== undefined;
function sayRow(row) {  // "after ⏎": the label of a token with its spaces shown
  const label = hasNode(row) ? lastStack().labels[row.node] : "";
  return label && row.label.endsWith(label) ? row.label.slice(0, -label.length) + show(label) : row.label;
}

function buildReadings() {
  const {rows, outputs, cells, is_logits, final, answer} = data.readings, layers = cells.length;
  $("readings-note").textContent = is_logits
    ? "What the head would answer if the model ended after this layer; the last row is the model's own answer. Darker for a higher probability; a click names the five likeliest."
    : `What the head would answer if the model ended after this layer: ${outputs[0]}; a click shows all numbers. The last row is the model's own answer.`;
  const numbers = is_logits ? [] : cells.flatMap(row => row.map(cell => cell[0])), low = Math.min(...numbers), high = Math.max(...numbers);
  const head = element("thead", {}, element("tr", {}, element("th", {}, ""), ...rows.map((row, j) => element("th", {scope: "col", title: sayRow(row), ...(j === answer ? {class: "answer"} : {})}, hasNode(row) ? show(lastStack().labels[row.node]) : row.label))));
  const body = element("tbody");
  for (let layer = 0; layer < layers; layer++) {
    const tr = element("tr", {}, element("th", {scope: "row"}, layer ? `layer ${layer}` : "embedding"));
    rows.forEach((row, j) => {
      const cell = cells[layer][j], share = is_logits ? cell[0][1] : (cell[0] - low) / (high - low || 1) * 0.8;
      const text = is_logits ? show(outputs[cell[0][0]]) : number(cell[0]);
      const button = element("button", {type: "button", "data-cell": `${layer} ${j}`}, text);
      button.style.background = tint(0.85 * share); button.style.color = ink(0.85 * share);
      tr.append(element("td", j === answer ? {class: "answer"} : {}, button));
    });
    body.append(tr);
  }
  $("readings").replaceChildren(head, body);
  roam($("readings"));
  $("readings").onclick = event => {
    const button = event.target.closest("[data-cell]");
    if (button) showCell(...button.dataset.cell.split(" ").map(Number));
  };
}
function showCell(layer, j) {
  const {rows, outputs, cells, is_logits, final} = data.readings, row = rows[j];
  const name = layer ? `After layer ${layer}` : "After the embedding";
  const items = is_logits ? cells[layer][j].map(([i, p]) => [show(outputs[i]), p]) : cells[layer][j].map((x, i) => [outputs[i], x]);
  const top = Math.max(...items.map(([, x]) => Math.abs(x)), 1e-9);
  const lines = items.map(([text, x]) => {
    const bar = element("span", {class: "bar"});
    bar.style.width = `${Math.max(1, 120 * Math.abs(x) / (is_logits ? 1 : top))}px`;
    return element("tr", {}, element("th", {}, text), element("td", {}, number(x)), element("td", {}, bar));
  });
  const last = is_logits ? ` The final answer, ${show(outputs[cells[cells.length - 1][j][0][0]])}, has ${final.map(values => number(values[j])).join(" → ")} from layer to layer.` : "";
  $("cell").replaceChildren(element("p", {}, `${name}, ${sayRow(row)}.${last}`), element("table", {}, ...lines));
  if (hasNode(row) && stackOf() === lastStack()) choose({node: row.node});
}

// --- what changes the answer ---

function changeCell(change, top) {
  if (!change) return element("td", {}, element("span", {}, ""));
  const share = Math.min(1, Math.abs(change.change) / top), name = change.change < 0 ? "--c1" : "--c2";
  const cell = element("span", change.answer === undefined ? {} : {title: `the answer becomes ${show(change.answer)}`}, `${number(change.change)}${change.answer === undefined ? "" : "*"}`);
  cell.style.background = tint(0.8 * share, name); cell.style.color = ink(0.8 * share, name);
  return element("td", {}, cell);
}
function buildAblation() {
  const {outcome, base, groups, left_out} = data.ablation, changes = Object.values(groups).flatMap(group => Object.values(group));
  const top = Math.max(...changes.map(x => Math.abs(x.change)), 1e-9);
  $("ablation-note").textContent = changes.length
    ? `The ${outcome} is ${number(base)}. How it changes where a part of the model adds nothing to the stream, or some edges are removed from all layers. A star: the answer becomes another one.`
    : "";
  if (left_out.length) $("ablation-note").append(` Not measured, as they take too many passes of this model: ${left_out.join(", ")} (--passes).`);
  const parts = data.attention.map(p => buildAblatedPart(p, groups, top));
  if (groups.edges) {
    const rows = Object.entries(groups.edges).map(([name, change]) => element("tr", {}, element("th", {scope: "row"}, name), changeCell(change, top)));
    parts.push(element("h3", {}, "edges"), element("div", {class: "scroll"}, element("table", {class: "plain"}, ...rows)));
  }
  $("ablation").replaceChildren(...parts.flat());
}
function buildAblatedPart(p, groups, top) {
  const stack = data.stacks[p.query].name, own = [p.kind, ...(p.kind === "attn" ? ["mlp"] : [])].filter(() => groups.sublayers);
  const heads = groups.heads ? Array.from({length: p.heads}, (_, h) => h) : [];
  if (!own.length && !heads.length) return [];
  const names = {attn: "all heads", cross: "all heads", mlp: "MLP"};
  const head = element("thead", {}, element("tr", {}, element("th", {}, ""), ...own.map(kind => element("th", {scope: "col"}, names[kind])), ...heads.map(h => element("th", {scope: "col"}, `head ${h}`))));
  const rows = p.layers.map((_, layer) => element("tr", {}, element("th", {scope: "row"}, `layer ${layer + 1}`),
    ...own.map(kind => changeCell(groups.sublayers[`${stack}.blocks.${layer}.${kind}`], top)),
    ...heads.map(h => changeCell(groups.heads[`${stack}.blocks.${layer}.${p.kind}.${h}`], top))));
  return [element("h3", {}, partName(p)), element("div", {class: "scroll"}, element("table", {}, head, element("tbody", {}, ...rows)))];
}

// --- heat maps: a row for each layer, a column for each node or group of nodes ---

const maps = [];
function heatMap(title, grid, columns, paint, describe) {
  const canvas = element("canvas", {tabindex: "0", role: "img", "aria-label": `${title}; arrow keys read out the cells`});
  const out = element("p", {class: "note", "aria-live": "polite"}), cell = {row: 0, column: 0};
  const draw = () => {
    const room = Math.max(200, (canvas.parentElement.clientWidth || 300)), label = 78, count = grid[0].length;
    const width = Math.max(1, Math.min(28, (room - label) / count)), height = 18, isNamed = width >= 12;
    const longest = isNamed ? Math.min(130, 12 + 6.5 * Math.max(...columns.map(text => text.length))) : 4;
    const context = sizeCanvas(canvas, label + width * count, height * grid.length + longest);
    canvas.style.width = `${label + width * count}px`;
    grid.forEach((values, row) => {
      const y = row * height;
      drawLabel(context, row ? `layer ${row}` : "embedding", 0, y + height / 2, label, "left", false);
      values.forEach((value, column) => { context.fillStyle = paint(value); context.fillRect(label + column * width, y, Math.ceil(width), height - 1); });
    });
    if (isNamed) columns.forEach((text, column) => {
      context.save();
      context.translate(label + (column + 0.5) * width, height * grid.length + 4); context.rotate(Math.PI / 2);
      drawLabel(context, text, 0, 0, 120, "left", false);
      context.restore();
    });
    canvas.locate = event => ({row: Math.floor(event.offsetY / height), column: Math.floor((event.offsetX - label) / width)});
  };
  const read = ({row, column}) => grid[row] && grid[row][column] !== undefined ? `${row ? `layer ${row}` : "embedding"}, ${columns[column]}: ${describe(grid[row][column])}` : "";
  canvas.addEventListener("pointermove", event => { const text = read(canvas.locate(event)); if (text) tip(event.clientX, event.clientY, text); else hideTip(); });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("keydown", event => {
    const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (!move) return;
    event.preventDefault();
    const next = {row: cell.row + move[0], column: cell.column + move[1]};
    if (read(next)) Object.assign(cell, next);
    out.textContent = read(cell);
  });
  maps.push(draw);
  return element("div", {class: "grid"}, canvas, out);
}
function buildPatching() {
  const patching = data.patching;
  $("patching-section").hidden = !patching;
  if (!patching) return;
  const [own, other] = patching.answers.map(show);
  $("patching-note").textContent = own === other
    ? `Both inputs are answered by ${own}. How far the answer moves to that of the other input (0 not, 1 all the way) where the stream after a layer, at one node, is that of the other.`
    : `This input is answered by ${own}, the other by ${other}. How far the answer moves to the other one (0 not, 1 all the way) where the stream after a layer, at one node, is that of the other input.`;
  const children = patching.stacks.flatMap(({name, groups, grid}) => {
    const stack = data.stacks.find(s => s.name === name), others = patching.labels[name];
    const columns = groups.map(([first, last]) => {
      const own = show(stack.labels[first]), changed = others[first] === stack.labels[first] ? "" : ` → ${show(others[first])}`;
      return first === last ? own + changed : `${first} to ${last}`;
    });
    const paint = x => tint(0.9 * Math.min(1, Math.abs(x)), x < 0 ? "--c1" : "--c0");
    return [data.stacks.length > 1 ? element("h3", {}, name) : "", heatMap(`patching of ${name}`, grid, columns, paint, number)];
  });
  $("patching").replaceChildren(...children);
}
function buildNorms() {
  const mean = values => values.reduce((a, b) => a + b, 0) / values.length, names = {attn: "attention adds", cross: "cross-attention adds", mlp: "MLP adds"};
  $("norms").replaceChildren(...data.stacks.flatMap(stack => {
    const {stream, ...added} = stack.norms, all = stream.flat().filter(x => x > 0).map(Math.log), low = Math.min(...all), high = Math.max(...all);
    const paint = x => tint(x > 0 ? 0.1 + 0.85 * (Math.log(x) - low) / (high - low || 1) : 0);
    const kinds = Object.keys(added);
    const head = element("thead", {}, element("tr", {}, element("th", {}, ""), element("th", {scope: "col"}, "stream"), ...kinds.map(kind => element("th", {scope: "col"}, names[kind]))));
    const rows = stream.map((values, layer) => element("tr", {}, element("th", {scope: "row"}, layer ? `layer ${layer}` : "embedding"),
      ...[mean(values), ...kinds.map(kind => layer ? mean(added[kind][layer - 1]) : null)].map(x => element("td", {}, element("span", {}, x === null ? "" : number(x))))));
    return [data.stacks.length > 1 ? element("h3", {}, stack.name) : "", heatMap(`norms of ${stack.name}`, stream, stack.labels.map(show), paint, number),
      element("div", {class: "scroll"}, element("table", {class: "plain"}, head, element("tbody", {}, ...rows)))];
  }));
}

// --- all of it ---

function drawAll() {
  readColors();
  drawGraph();
  drawTables();
}
function drawTables() {  // later: what is further down may come after the first picture
  setTimeout(() => {
    buildHeads(); buildReadings(); buildAblation();
    for (const draw of maps) draw();
    document.body.dataset.ready = "true";
  });
}
function start() {
  readColors();
  state.part = Math.max(0, data.attention.findIndex(p => p.query === data.stacks.length - 1 && p.kind === "cross"));
  fillControls(); buildInputs(); buildPatching(); buildNorms(); listen();
  const row = data.readings.rows[data.readings.answer], kinds = lastStack().kinds;
  choose({layer: Infinity, node: hasNode(row) ? row.node : kinds.includes("class") ? kinds.indexOf("class") : Infinity});
  drawTables();
}
start();
