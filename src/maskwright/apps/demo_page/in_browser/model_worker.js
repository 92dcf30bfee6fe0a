// Runs the exported model beside the page, which goes on meanwhile. It keeps nothing of pictures.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { paste } from "./paste.js";
import { networkInput, resizedSize } from "./preparation.js";

const BOXES_AT_ONCE = 16;

ort.env.wasm.numThreads = 1; // more need headers that plain file servers do not send
ort.env.wasm.wasmPaths = { wasm: address("ort-wasm-simd-threaded.wasm") };

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

// The outputs of a session by name; of `values` it takes those that it knows.
async function run(session, values) {
  const feeds = Object.fromEntries(session.inputNames.map((name) => [name, tensor(values[name])]));
  const outputs = await session.run(feeds);
  return Object.fromEntries(session.outputNames.map((name) => [name, plain(outputs[name])]));
}

// Messages carry arrays, not tensors.
const tensor = ({ type, data, dims }) => new ort.Tensor(type, data, dims);
const plain = ({ type, data, dims }) => ({ type, data, dims });

const ACTIONS = {
  // What `masksOf` needs of a picture.
  async encode({ model, encoder, masks }, bitmap) {
    const size = [bitmap.height, bitmap.width];
    const data = networkInput(rowsOf(bitmap), size, model);
    bitmap.close();
    const image = { type: "float32", data, dims: [1, 3, model.image_size, model.image_size] };
    const maps = { image, ...(await run(encoder, { image })) };
    return { size, maps: Object.fromEntries(Object.entries(maps).filter(([name]) => masks.inputNames.includes(name))) };
  },

  // The objects in boxes, as `segmenter.js` has them.
  async masksOf({ model, masks }, { size, maps }, boxes, threshold) {
    const [newHeight, newWidth] = resizedSize(size, model);
    const scale = [newWidth / size[1], newHeight / size[0]];
    const objects = [];
    for (let first = 0; first < boxes.length; first += BOXES_AT_ONCE) {
      const some = boxes.slice(first, first + BOXES_AT_ONCE);
      const count = some.length;
      const corners = some.flatMap((box) => box.map((corner, side) => corner * scale[side % 2]));
      const found = await run(masks, {
        ...maps,
        boxes: { type: "float32", data: Float32Array.from(corners), dims: [count, 4] },
        image_index: { type: "int64", data: new BigInt64Array(count), dims: [count] },
        labels: { type: "int64", data: new BigInt64Array(count).fill(-1n), dims: [count] },
      });
      const { data, dims: [, side] } = found.mask_probabilities;
      some.forEach((box, index) => {
        const probabilities = data.subarray(index * side * side, (index + 1) * side * side);
        objects.push({
          box: box.map((corner) => Math.round(100 * corner) / 100),
          quality: Math.round(1e5 * found.mask_scores.data[index]) / 1e5,
          category: null,
          mask: paste(probabilities, side, box, model.box_frame, size, threshold),
        });
      });
    }
    return objects;
  },
};

// A function that reads rows of a picture, transparent pixels laid on white; canvases are limited where pictures are not.
function rowsOf(bitmap) {
  const canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  return (first, end) => {
    [canvas.width, canvas.height] = [bitmap.width, end - first];
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, -first);
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
