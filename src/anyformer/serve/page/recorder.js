// Runs in the thread of the browser's sound: hands samples on, in blocks of a tenth of a second or so.

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Float32Array(4096);
    this.count = 0;
  }

  process([input]) {
    const samples = input[0];
    if (!samples) return true;
    if (this.count + samples.length > this.block.length) {
      this.port.postMessage(this.block.slice(0, this.count));
      this.count = 0;
    }
    this.block.set(samples, this.count);
    this.count += samples.length;
    return true;
  }
}

registerProcessor("recorder", Recorder);
