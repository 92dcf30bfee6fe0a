// The exported model on onnxruntime-web, as maskwright/onnx/predictor.py runs it.
//
// files: {model, encoder, masks}, what they say of themselves and their sessions. A picture is {size, read}: its
// [height, width], and a function that reads the part (left, top, right, bottom) as four bytes (RGBA) a pixel.

import { Tensor } from "./ort.wasm.bundle.min.mjs";
import { networkInput, resizedSize } from "./preparation.js";
import { isSmall, meanOfLooks, squareAround } from "./second_look.js";

const BOXES_AT_ONCE = 16;

// What the file of the masks needs of a picture beside the boxes.
export function encode(files, picture) {
  const [height, width] = picture.size;
  return mapsOf(files, picture, [[0, 0, width, height]], files.model);
}

// Of each box (xyxy, pixels of the picture) {probabilities, side, score}: a grid of side * side on the box.
export async function masksOf(files, picture, maps, boxes) {
  const found = [];
  for (let first = 0; first < boxes.length; first += BOXES_AT_ONCE) {
    found.push(...(await someMasks(files, picture, maps, boxes.slice(first, first + BOXES_AT_ONCE))));
  }
  return found;
}

async function someMasks(files, picture, maps, boxes) {
  const inInput = boxes.map((box) => scaled(box, picture.size, files.model));
  const seen = await look(files, maps, inInput, boxes.map(() => 0));
  const small = [...boxes.keys()].filter((row) => isSmall(inInput[row], files.model));
  if (small.length) {
    const again = await lookAgain(files, picture, small.map((row) => boxes[row]));
    small.forEach((row, place) => {
      seen[row] = meanOfLooks(seen[row], again[place], files.model);
    });
  }
  return seen;
}

// On enlarged parts of the picture around the boxes.
async function lookAgain(files, picture, boxes) {
  const model = { ...files.model, image_size: files.model.second_look.size };
  const parts = boxes.map((box) => squareAround(picture.size, box, model));
  const inInput = boxes.map((box, row) => {
    const [left, top, right, bottom] = parts[row];
    return scaled(box.map((corner, side) => corner - [left, top][side % 2]), [bottom - top, right - left], model);
  });
  return look(files, await mapsOf(files, picture, parts, model), inInput, [...boxes.keys()]);
}

async function mapsOf({ encoder }, picture, parts, model) {
  const length = 3 * model.image_size ** 2;
  const data = new Float32Array(parts.length * length);
  parts.forEach(([left, top, right, bottom], row) => {
    const readRows = (first, end) => picture.read(left, top + first, right, top + end);
    data.set(networkInput(readRows, [bottom - top, right - left], model), row * length);
  });
  const image = new Tensor("float32", data, [parts.length, 3, model.image_size, model.image_size]);
  return { image, ...(await run(encoder, { image })) };
}

// What the file of the masks says of boxes in pixels of the network's input, each on the image of its index.
async function look({ masks }, maps, boxes, indices) {
  const count = boxes.length;
  const found = await run(masks, {
    ...maps,
    boxes: new Tensor("float32", Float32Array.from(boxes.flat()), [count, 4]),
    image_index: new Tensor("int64", BigInt64Array.from(indices, BigInt), [count]),
    labels: new Tensor("int64", new BigInt64Array(count).fill(-1n), [count]),
  });
  const { data, dims: [, side] } = found.mask_probabilities;
  return boxes.map((_, row) => ({
    probabilities: data.subarray(row * side * side, (row + 1) * side * side),
    side,
    score: found.mask_scores.data[row],
    logit: found.mask_quality_logits?.data[row],
  }));
}

// The outputs of a session by name; of `values` it takes those that it knows.
const run = (session, values) =>
  session.run(Object.fromEntries(session.inputNames.map((name) => [name, values[name]])));

// A box in pixels of the network's input.
function scaled(box, [height, width], model) {
  const [newHeight, newWidth] = resizedSize([height, width], model);
  return box.map((corner, side) => corner * (side % 2 ? newHeight / height : newWidth / width));
}
