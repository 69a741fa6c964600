// Drawings: bars, matrices, forecasts, and episodes of environments. Colors come from the style sheet.

import { format, h, percent, svg } from "./dom.js";

/** Units of a drawing are about pixels, so that its words can be read on a phone too. */
const plotWidth = () => Math.min(560, innerWidth - 70);

/** Names with shares as bars, the first ones of many. */
export function drawBars(pairs, { limit = 10, label = percent } = {}) {
  const shown = pairs.slice(0, limit);
  const list = h("ol", { class: "bars" });
  const add = ([name, share], i) => {
    const fill = h("span", { class: "fill" });
    fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
    const text = /^\s*$/.test(name) ? JSON.stringify(name) : name;
    list.append(
      h(
        "li",
        { class: i === 0 ? "first" : null },
        h("span", { class: "name" }, text),
        h("span", { class: "track", "aria-hidden": "true" }, fill),
        h("span", { class: "value" }, label(share)),
      ),
    );
  };
  shown.forEach(add);
  if (pairs.length <= limit) return list;
  const more = h("button", { type: "button", class: "link" }, `${pairs.length - limit} more`);
  more.addEventListener("click", () => {
    pairs.slice(limit).forEach((pair, i) => add(pair, i + 1));
    more.remove();
  });
  return h("div", {}, list, more);
}

/** A matrix of shares with names on both sides; `say` puts a cell into words. */
export function drawMatrix(values, rows, columns, say, point = () => {}) {
  const longest = (names) => Math.min(24, Math.max(...names.map((name) => name.length), 1));
  const left = 10 + 8 * longest(rows);
  const cell = Math.max(14, Math.min(34, (plotWidth() - left - 40) / Math.max(columns.length, 1)));
  const top = longest(columns) <= 2 ? 24 : 12 + 6 * longest(columns);
  const width = left + cell * columns.length + (longest(columns) <= 2 ? 4 : 40);
  const picture = svg("svg", {
    class: width > plotWidth() ? "matrix large" : "matrix",
    viewBox: `0 0 ${width} ${top + cell * rows.length + 4}`,
    width,
    role: "img",
  });
  const readout = h("p", { class: "quiet readout", "aria-live": "off" }, " ");
  const highest = Math.max(...values.flat(), 1e-9); // the darkest cell
  const shown = (name) => (name.trim() ? name : "␣").slice(0, 24);
  columns.forEach((name, x) => {
    const place = `translate(${left + cell * (x + 0.5) + 4} ${top - 7})${longest(columns) <= 2 ? "" : " rotate(-40)"}`;
    picture.append(
      svg(
        "text",
        {
          transform: place,
          "text-anchor": longest(columns) <= 2 ? "middle" : "start",
          dx: longest(columns) <= 2 ? -4 : 0,
        },
        shown(name),
      ),
    );
  });
  values.forEach((row, y) => {
    picture.append(svg("text", { x: left - 6, y: top + cell * (y + 0.5) + 4, "text-anchor": "end" }, shown(rows[y])));
    row.forEach((value, x) => {
      const mark = svg("rect", {
        x: left + cell * x,
        y: top + cell * y,
        width: cell - 1,
        height: cell - 1,
        rx: 2,
        "fill-opacity": Math.max(0, value / highest).toFixed(3),
      });
      const show = () => {
        readout.textContent = say(y, x, value);
        point(y, x);
      };
      mark.addEventListener("pointerenter", show);
      mark.addEventListener("click", show);
      picture.append(mark);
    });
  });
  picture.setAttribute("aria-label", `${rows.length} by ${columns.length} weights`);
  return h("div", { class: "scroll" }, picture, readout);
}

const niceStep = (span, count) => {
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
};

/** The axes of a plot: {picture, x, y} with the scales. */
function makePlot(xs, ys, width, height, label) {
  const [left, right, top, bottom] = [52, 12, 10, 24];
  const [low, high] = [Math.min(...ys), Math.max(...ys)];
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  const [y0, y1] = [low - pad, high + pad];
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const x = (value) => left + ((value - x0) / (x1 - x0 || 1)) * (width - left - right);
  const y = (value) => top + (1 - (value - y0) / (y1 - y0)) * (height - top - bottom);
  const picture = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const step = niceStep(y1 - y0, 4);
  for (let value = Math.ceil(y0 / step) * step; value <= y1; value += step) {
    picture.append(svg("path", { class: "gridline", d: `M${left} ${y(value)}H${width - right}` }));
    picture.append(
      svg("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, format(Number(value.toPrecision(6)))),
    );
  }
  return { picture, x, y, width, height };
}

const path = (points) => `M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`;

/** A forecast: the past, the median, and bands between pairs of quantiles. */
export function drawForecast(result, past) {
  const { median, quantiles } = result;
  const levels = Object.keys(quantiles).sort((a, b) => a - b);
  const bands = levels
    .slice(0, Math.floor(levels.length / 2))
    .map((level, i) => [level, levels[levels.length - 1 - i]]);
  const before = past.slice(-Math.max(3 * median.length, 48));
  const xs = [...before.keys()].map((i) => i - before.length).concat([...median.keys()]);
  const truth = (result.truth ?? []).slice(0, median.length);
  const all = [...before, ...median, ...Object.values(quantiles).flat(), ...truth];
  const plot = makePlot(
    xs,
    all,
    plotWidth(),
    260,
    `forecast of ${median.length} steps, ending at ${format(median.at(-1))}`,
  );
  const join = before.length ? [[-1, before.at(-1)]] : []; // bands open where the past ends
  for (const [low, high] of bands) {
    const upper = [...join, ...quantiles[high].map((value, i) => [i, value])];
    const lower = [...join, ...quantiles[low].map((value, i) => [i, value])].reverse();
    const d = `${path([...upper, ...lower].map(([i, value]) => [plot.x(i), plot.y(value)]))}Z`;
    plot.picture.append(svg("path", { class: "band", d }));
  }
  const line = (css, points) =>
    plot.picture.append(svg("path", { class: css, d: path(points.map(([i, value]) => [plot.x(i), plot.y(value)])) }));
  if (before.length > 1)
    line(
      "past",
      before.map((value, i) => [i - before.length, value]),
    );
  line("median", [...join, ...median.map((value, i) => [i, value])]);
  if (truth.length > 1) line("truth", [...join, ...truth.map((value, i) => [i, value])]);
  const times = result.times ?? result.steps ?? [];
  const isWide = plot.x(median.length - 1) - plot.x(0) > 16 * String(times[0]).length;
  for (const i of isWide ? [0, median.length - 1] : [median.length - 1]) {
    if (times[i] != null)
      plot.picture.append(svg("text", { x: plot.x(i), y: 254, "text-anchor": i ? "end" : "start" }, String(times[i])));
  }
  return h(
    "div",
    { class: "scroll" },
    plot.picture,
    addReadout(plot, median.length, (i) => {
      const outer = bands[0]
        ? `, ${levels[0]} to ${levels.at(-1)}: ${format(quantiles[levels[0]][i])} to ${format(quantiles[levels.at(-1)][i])}`
        : "";
      return `${times[i] ?? `step ${i + 1}`}: median ${format(median[i])}${outer}`;
    }),
    makeLegend([
      ["past", before.length > 1],
      ["median", true],
      ["band", bands.length > 0],
      ["truth", truth.length > 1],
    ]),
  );
}

/** A line that follows the pointer over a plot, and what is there in words. */
function addReadout(plot, count, say) {
  const readout = h("p", { class: "quiet readout" }, " ");
  const hair = svg("path", { class: "hair" });
  plot.picture.append(hair);
  plot.picture.addEventListener("pointermove", (event) => {
    const box = plot.picture.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * plot.width;
    const i = Math.round((at - plot.x(0)) / (plot.x(1) - plot.x(0)) || 0);
    if (i < 0 || i >= count) return;
    hair.setAttribute("d", `M${plot.x(i)} 10V${plot.height - 24}`);
    readout.textContent = say(i);
  });
  return readout;
}

const LEGEND = { past: "past", median: "median", band: "bands of 80, 60, 40 and 20 %", truth: "what followed" };
const makeLegend = (entries) =>
  h(
    "p",
    { class: "legend" },
    entries.filter(([, shown]) => shown).map(([css]) => h("span", { class: css }, LEGEND[css])),
  );

/** Numbers as a small line. */
export function drawLine(values, css = "past") {
  const plot = makePlot([...values.keys()], values, plotWidth(), 110, `${values.length} numbers`);
  plot.picture.append(svg("path", { class: css, d: path(values.map((value, i) => [plot.x(i), plot.y(value)])) }));
  return plot.picture;
}

// --- episodes ---

const SCENES = {
  "Line-v0": ([x]) => {
    const places = [...Array(17).keys()].map((i) =>
      svg("circle", { class: Math.abs(i - 8) <= 1 ? "goal" : "place", cx: 20 + 22.5 * i, cy: 80, r: 3 }),
    );
    return [...places, svg("circle", { class: "body", cx: 200 + 180 * x, cy: 80, r: 10 })];
  },
  "CartPole-v1": ([x, , angle]) => {
    const cart = 200 + 60 * x;
    const tip = [cart + 80 * Math.sin(angle), 116 - 80 * Math.cos(angle)];
    return [
      svg("path", { class: "ground", d: "M20 132H380" }),
      svg("rect", { class: "body", x: cart - 24, y: 116, width: 48, height: 16, rx: 3 }),
      svg("path", { class: "pole", d: `M${cart} 116L${tip[0]} ${tip[1]}` }),
    ];
  },
  "Pendulum-v1": ([cos, sin]) => [
    svg("circle", { class: "place", cx: 200, cy: 80, r: 4 }),
    svg("path", { class: "pole", d: `M200 80L${200 - 62 * sin} ${80 - 62 * cos}` }),
    svg("circle", { class: "body", cx: 200 - 62 * sin, cy: 80 - 62 * cos, r: 9 }),
  ],
  "MountainCar-v0": ([x]) => {
    const hill = (at) => [200 + 130 * (at + 0.3), 130 - 50 * (Math.sin(3 * at) + 1)];
    const points = [...Array(61).keys()].map((i) => hill(-1.2 + i * 0.03));
    const [cx, cy] = hill(x);
    return [svg("path", { class: "ground", d: path(points) }), svg("circle", { class: "body", cx, cy: cy - 8, r: 8 })];
  },
};

/** The numbers of any other state, as bars around zero. */
function drawState(state) {
  const width = 360 / state.length;
  return state.map((value, i) => {
    const size = 60 * Math.tanh(value);
    return svg("rect", {
      class: "body",
      x: 20 + i * width,
      y: 80 - Math.max(size, 0),
      width: Math.max(2, width - 3),
      height: Math.abs(size) + 1,
    });
  });
}

/** An episode as it plays, with the return so far below the one to reach. */
export function drawEpisode({ env, wanted, trace }) {
  const { states, actions, rewards } = trace;
  const totals = rewards.reduce((sums, reward) => [...sums, (sums.at(-1) ?? 0) + reward], []);
  const scene = svg("svg", {
    class: "scene",
    viewBox: "0 0 400 150",
    role: "img",
    "aria-label": `an episode of ${env}`,
  });
  const plot = makePlot(
    [0, Math.max(1, totals.length - 1)],
    [0, wanted, ...totals],
    plotWidth(),
    140,
    `the return rises to ${format(totals.at(-1))}`,
  );
  plot.picture.append(
    svg("path", { class: "wanted", d: `M${plot.x(0)} ${plot.y(wanted)}H${plot.x(Math.max(1, totals.length - 1))}` }),
  );
  const line = svg("path", { class: "median" });
  plot.picture.append(line);
  const caption = h("output", { class: "quiet" });
  const show = (step) => {
    scene.replaceChildren(...(SCENES[env] ?? drawState)(states[step]));
    line.setAttribute("d", path(totals.slice(0, step + 1).map((total, i) => [plot.x(i), plot.y(total)])));
    const action = Array.isArray(actions[step]) ? actions[step].map(format).join(", ") : actions[step];
    caption.textContent = `step ${step + 1} of ${states.length} · action ${action} · return ${format(totals[step])}`;
  };
  const pace = Math.max(20, Math.min(200, 6000 / states.length));
  const player = makePlayer(states.length, show, "step of the episode", pace);
  const legend = h(
    "p",
    { class: "legend" },
    h("span", { class: "median" }, "return so far"),
    h("span", { class: "wanted" }, "return to reach"),
  );
  return h("div", { class: "episode" }, scene, player, caption, plot.picture, legend);
}

/** A button and a slider that show the steps of something, which begin to play by themselves once they are on the page;
 * where motion is not wanted, the last one is shown. `pace`: milliseconds of a step. */
export function makePlayer(count, show, label, pace) {
  const scrub = h("input", { type: "range", min: 0, max: count - 1, value: 0, "aria-label": label });
  const play = h("button", { type: "button" }, "Play");
  let timer = null;
  const go = (step) => {
    scrub.value = step;
    show(step);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };
  const start = () => {
    let step = Number(scrub.value) >= count - 1 ? 0 : Number(scrub.value);
    play.textContent = "Pause";
    timer = setInterval(() => {
      if (!scrub.isConnected) return stop(); // another answer has taken its place
      go(step);
      if (++step >= count) stop();
    }, pace);
  };
  play.addEventListener("click", () => (timer ? stop() : start()));
  scrub.addEventListener("input", () => {
    stop();
    show(Number(scrub.value));
  });
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  go(isCalm ? count - 1 : 0);
  if (!isCalm) setTimeout(start, 0); // once it is on the page
  return h("p", { class: "row player" }, play, scrub);
}
