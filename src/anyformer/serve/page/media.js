// Images and sounds: from a file, dropped, from the camera or the microphone.

import { h, svg } from "./dom.js";

const LIVE_SECONDS = 60; // of a recording that are sent again and again; a longer one is answered at its end
const PEAKS = 240; // bars of a waveform
const canCapture = () => Boolean(navigator.mediaDevices?.getUserMedia); // browsers allow it on https and localhost only

/** A place to drop a file on, or to choose one by click or key. */
function makeDrop(accept, words, take) {
  const input = h("input", { type: "file", accept, class: "hidden-file", "aria-label": words });
  const zone = h("label", { class: "drop" }, input, h("span", {}, words));
  input.addEventListener("change", () => input.files[0] && take(input.files[0]));
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  return zone;
}

/** An image to be recognized: {element, file}. */
export function makeImageInput(changed) {
  let file = null;
  const preview = h("figure", { class: "preview", hidden: true });
  const note = h("p", { class: "quiet", role: "status" });
  const take = (chosen) => {
    file = chosen;
    const image = h("img", { alt: `your image, ${chosen.name}`, src: URL.createObjectURL(chosen) });
    image.addEventListener("load", () => image.classList.toggle("tiny", image.naturalWidth < 100));
    preview.replaceChildren(image, h("figcaption", {}, chosen.name));
    preview.hidden = false;
    note.textContent = "";
    changed();
  };
  const camera = h(
    "button",
    { type: "button", onclick: () => takePhoto(preview, take, note), hidden: !canCapture() },
    "Camera",
  );
  const drop = makeDrop("image/*", "Drop an image here, or choose one", take);
  return {
    element: h("div", { class: "media" }, preview, drop, h("p", { class: "row" }, camera), note),
    file: () => file,
  };
}

async function takePhoto(preview, take, note) {
  let source;
  try {
    source = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    note.textContent = `The camera cannot be used: ${error.message}`;
    return;
  }
  const stop = () => source.getTracks().forEach((track) => track.stop());
  const video = h("video", { autoplay: true, playsinline: true, "aria-label": "camera" });
  video.muted = true;
  video.srcObject = source;
  const shoot = h("button", { type: "button", class: "primary" }, "Take the picture");
  shoot.addEventListener("click", () => {
    const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    stop();
    canvas.toBlob((blob) => take(new File([blob], "photo.png", { type: "image/png" })), "image/png");
  });
  preview.replaceChildren(video, shoot);
  preview.hidden = false;
  shoot.focus();
}

// --- sound ---

/** A sound to be transcribed: {element, file}. While the microphone is on, `heard` gets what was recorded so far. */
export function makeSoundInput(changed, heard) {
  let file = null;
  let recording = null;
  const view = h("figure", { class: "preview sound", hidden: true });
  const note = h("p", { class: "quiet", role: "status" });
  const take = (chosen) => {
    file = chosen;
    const player = h("audio", { controls: true, src: URL.createObjectURL(chosen) });
    view.replaceChildren(player, h("figcaption", {}, chosen.name));
    view.hidden = false;
    drawFile(chosen).then(
      (wave) => view.prepend(wave),
      () => {},
    ); // a sound that only the server can read
    changed();
  };
  const record = h("button", { type: "button", hidden: !canCapture(), "aria-pressed": "false" }, "Record");
  record.addEventListener("click", async () => {
    if (recording) {
      const sound = recording.stop();
      recording = null;
      record.textContent = "Record";
      record.setAttribute("aria-pressed", "false");
      take(sound);
      return;
    }
    try {
      recording = await startRecording((level, soFar) => {
        view.replaceChildren(drawWave(level));
        view.hidden = false;
        heard(soFar);
      });
      record.textContent = "Stop";
      record.setAttribute("aria-pressed", "true");
    } catch (error) {
      note.textContent = `The microphone cannot be used: ${error.message}`;
    }
  });
  const drop = makeDrop("audio/*,.wav,.flac,.ogg,.mp3", "Drop a sound here, or choose one", take);
  return {
    element: h("div", { class: "media" }, view, drop, h("p", { class: "row" }, record), note),
    file: () => file,
  };
}

/** Record samples as they are: browsers encode as WebM, which the server does not read; WAV is 44 bytes and samples. */
async function startRecording(update) {
  const source = await navigator.mediaDevices.getUserMedia({ audio: true });
  const context = new AudioContext();
  await context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
  const node = new AudioWorkletNode(context, "recorder");
  const blocks = [];
  let count = 0;
  node.port.onmessage = ({ data }) => {
    blocks.push(data);
    count += data.length;
    if (blocks.length % 8 === 0 && count < LIVE_SECONDS * context.sampleRate)
      update(findPeaks(join(blocks, count)), () => makeWav(join(blocks, count), context.sampleRate));
  };
  context.createMediaStreamSource(source).connect(node);
  return {
    stop() {
      source.getTracks().forEach((track) => track.stop());
      context.close();
      return makeWav(join(blocks, count), context.sampleRate);
    },
  };
}

function join(blocks, count) {
  const samples = new Float32Array(count);
  let start = 0;
  for (const block of blocks) {
    samples.set(block, start);
    start += block.length;
  }
  return samples;
}

export function makeWav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (start, word) => [...word].forEach((letter, i) => view.setUint8(start + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of the format: PCM, one channel
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, x)) * 32767, true));
  return new File([view], "recording.wav", { type: "audio/wav" });
}

function findPeaks(samples) {
  const size = Math.max(1, Math.ceil(samples.length / PEAKS));
  const peaks = [];
  for (let start = 0; start < samples.length; start += size) {
    let peak = 0;
    for (let i = start; i < Math.min(samples.length, start + size); i++) peak = Math.max(peak, Math.abs(samples[i]));
    peaks.push(peak);
  }
  return peaks;
}

async function drawFile(file) {
  const context = new OfflineAudioContext(1, 1, 16000);
  const sound = await context.decodeAudioData(await file.arrayBuffer());
  return drawWave(findPeaks(sound.getChannelData(0)));
}

function drawWave(peaks) {
  const top = Math.max(...peaks, 1e-3);
  const d = peaks.map((peak, i) => `M${i + 0.5} ${30 - (28 * peak) / top}V${30 + (28 * peak) / top + 0.5}`).join("");
  const picture = svg("svg", {
    class: "wave",
    viewBox: `0 0 ${Math.max(peaks.length, 60)} 60`,
    preserveAspectRatio: "none",
  });
  picture.append(svg("path", { d }));
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", "waveform");
  return picture;
}
