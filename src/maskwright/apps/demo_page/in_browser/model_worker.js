// Runs the exported model beside the page, which goes on meanwhile. It keeps the last picture, and nothing of others.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { encode, masksOf } from "./model.js";
import { paste } from "./paste.js";

ort.env.wasm.numThreads = 1; // more need headers that plain file servers do not send
ort.env.wasm.wasmPaths = { wasm: address("ort-wasm-simd-threaded.wasm") };

let opened = null; // {bitmap, picture, maps}

function address(name) {
  return new URL(name, import.meta.url).href;
}

async function load() {
  try {
    const { model } = await (await fetch(address("model.json"))).json();
    const encoder = await ort.InferenceSession.create(address("model.encoder.onnx"));
    return { model, encoder, masks: await ort.InferenceSession.create(address("model.onnx")) };
  } catch (error) {
    throw new Error(`The model cannot be loaded: a file is missing, or this browser is too old (${told(error)})`);
  }
}

const ACTIONS = {
  // Make a bitmap the picture that `masksOf` is about.
  async open(files, bitmap) {
    const picture = { size: [bitmap.height, bitmap.width], read: readerOf(bitmap) };
    const maps = await encode(files, picture);
    opened?.bitmap.close();
    opened = { bitmap, picture, maps };
  },

  // The objects in boxes, as `segmenter.js` has them.
  async masksOf(files, boxes, threshold) {
    const { picture, maps } = opened;
    const found = await masksOf(files, picture, maps, boxes);
    return found.map(({ probabilities, side, score }, row) => ({
      box: boxes[row],
      quality: Math.round(1e5 * score) / 1e5,
      category: null,
      mask: paste(probabilities, side, boxes[row], files.model.box_frame, picture.size, threshold),
    }));
  },
};

// Reads parts of a picture, transparent pixels laid on white; canvases are limited where pictures are not.
function readerOf(bitmap) {
  const canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  return (left, top, right, bottom) => {
    [canvas.width, canvas.height] = [right - left, bottom - top];
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, -left, -top);
    return context.getImageData(0, 0, canvas.width, canvas.height).data;
  };
}

const told = (error) => String(error?.message ?? error); // WebAssembly throws numbers, too

const loaded = load();
let last = loaded.catch(() => {}); // one request after the other; each tells what is wrong

self.addEventListener("message", ({ data: { action, given }, ports: [port] }) => {
  last = last.then(async () => {
    try {
      port.postMessage({ result: await ACTIONS[action](await loaded, ...given) });
    } catch (error) {
      port.postMessage({ error: told(error) });
    }
  });
});
