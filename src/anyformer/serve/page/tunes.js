// A tune that was written: a roll of its notes, a player, and ABC notation.

import { h, svg } from "./dom.js";
import { makeWav } from "./media.js";

const RATE = 22050;
const HARMONICS = [1, 0.5, 0.3, 0.15]; // how loud; higher ones fade sooner, as of a plucked string
const RELEASE = 0.04; // seconds in which a note ends
const LONGEST = 600; // seconds that are played
const [SECOND, STEP] = [48, 6]; // pixels of a second, and of a semitone

/** A sample of `predict`; its sounds are [start, seconds, pitch]. */
export function drawTune({ prompt, text, tune, bars, complete, sounds }) {
  if (!sounds.length)
    return h("section", {}, h("p", { class: "text" }, prompt, text), h("p", { class: "quiet" }, "No tune that can be read."));
  const { element, light } = drawRoll(sounds);
  const audio = h("audio", { controls: true, src: URL.createObjectURL(makeWav(synthesize(sounds), RATE)) });
  for (const event of ["timeupdate", "seeked"]) audio.addEventListener(event, () => light(audio.currentTime));
  const file = URL.createObjectURL(new Blob([tune], { type: "text/vnd.abc" }));
  return h(
    "section",
    { class: "tune" },
    element,
    h("p", {}, audio),
    h("pre", { class: "code", tabindex: 0 }, tune),
    h("p", { class: "quiet" }, `${complete} of ${bars} inner bars are complete · `, h("a", { href: file, download: "tune.abc" }, "tune.abc")),
  );
}

/** A mark for each note: {element, light}; `light` shows which one is heard at a time. */
function drawRoll(sounds) {
  const pitches = sounds.map(([, , pitch]) => pitch);
  const [low, high] = [Math.min(...pitches), Math.max(...pitches)];
  const [start, seconds] = sounds.at(-1);
  const [width, height] = [Math.ceil((start + seconds) * SECOND) + 2, (high - low + 1) * STEP + 2];
  const label = `${sounds.length} notes as they are played`;
  const picture = svg("svg", { class: "roll", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
  const marks = sounds.map(([begin, length, pitch]) =>
    svg("rect", { x: begin * SECOND + 1, y: (high - pitch) * STEP + 1, width: Math.max(2, length * SECOND - 1.5), height: STEP - 1, rx: 1.5 }),
  );
  picture.append(...marks);
  const element = h("div", { class: "scroll" }, picture);
  const light = (time) => {
    sounds.forEach(([begin, length], i) => marks[i].classList.toggle("now", begin <= time && time < begin + length));
    element.scrollLeft = time * SECOND - element.clientWidth / 2;
  };
  return { element, light };
}

function synthesize(sounds) {
  const heard = sounds.filter(([start, seconds]) => start + seconds < LONGEST);
  const end = Math.max(...heard.map(([start, seconds]) => start + seconds), 0) + RELEASE;
  const samples = new Float32Array(Math.ceil(end * RATE) + 1);
  for (const [start, seconds, pitch] of heard) {
    const [hertz, first] = [440 * 2 ** ((pitch - 69) / 12), Math.round(start * RATE)];
    const count = Math.floor((seconds + RELEASE) * RATE);
    for (let i = 0; i < count && first + i < samples.length; i++) {
      const time = i / RATE;
      const envelope = Math.min(1, time / 0.005, (seconds + RELEASE - time) / RELEASE);
      HARMONICS.forEach((volume, n) => {
        samples[first + i] += 0.35 * envelope * volume * Math.exp((-time * (n + 1)) / 0.6) * Math.sin(2 * Math.PI * (n + 1) * hertz * time);
      });
    }
  }
  return samples;
}
