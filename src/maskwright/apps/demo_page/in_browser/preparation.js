// A picture to the network's input, as maskwright/onnx/preparation.py makes it. `model` is an exported file's metadata.

const ROWS_AT_ONCE = 256;

// [height, width] of a picture in the network's input.
export function resizedSize(size, { image_size: goal, size_rule: rule }) {
  if (rule === "round") {
    const scale = Math.min(...size.map((side) => goal / side));
    return size.map((side) => Math.max(1, roundHalfToEven(scale * side)));
  }
  const single = Math.fround; // the originals compute it so
  const growth = Math.max(...size.map((side) => single(goal / side)));
  const grown = size.map((side) => Math.floor(single(side * growth)));
  const shrinkage = Math.min(1, ...grown.map((side) => single(goal / side)));
  return grown.map((side) => Math.max(1, Math.floor(single(side * shrinkage))));
}

// Float32 [3, S, S]. readRows(first, end): these rows of the picture, four bytes (RGBA) a pixel.
export function networkInput(readRows, [height, width], model) {
  const [newHeight, newWidth] = resizedSize([height, width], model);
  const { image_size: side, resize, mean, std, padding } = model;
  const columns = interpolation(width, newWidth, resize);
  const narrow = new Float32Array(3 * newWidth * height);
  for (let top = 0; top < height; top += ROWS_AT_ONCE) {
    const pixels = readRows(top, Math.min(top + ROWS_AT_ONCE, height));
    narrow.set(narrowed(pixels, width, columns), 3 * newWidth * top);
  }
  const image = new Float32Array(3 * side * side);
  const order = model.channel_order === "bgr" ? [2, 1, 0] : [0, 1, 2];
  order.forEach((channel, plane) => {
    const normalized = (value) => (value - mean[channel]) / std[channel];
    image.fill(normalized(padding[channel]), plane * side * side, (plane + 1) * side * side);
    interpolation(height, newHeight, resize).forEach(({ first, weights }, y) => {
      for (let x = 0; x < newWidth; x += 1) {
        let sum = 0;
        weights.forEach((weight, row) => {
          sum += weight * narrow[3 * ((first + row) * newWidth + x) + channel];
        });
        image[(plane * side + y) * side + x] = normalized(sum / 255);
      }
    });
  });
  return image;
}

// Of each new pixel along one axis the first pixel that it is made of, and the weights of this one and the next ones.
function interpolation(side, newSide, method) {
  const ratio = side / newSide;
  const support = method === "antialias" ? Math.max(1, ratio) : 1;
  return Array.from({ length: newSide }, (_, pixel) => {
    let place = (pixel + 0.5) * ratio - 0.5;
    if (method === "tf1") place = pixel * ratio;
    if (method === "align_corners") place = pixel * ((side - 1) / Math.max(1, newSide - 1));
    if (method !== "antialias") place = Math.min(Math.max(place, 0), side - 1);
    const first = Math.max(0, Math.ceil(place - support));
    const end = Math.min(side, Math.floor(place + support) + 1);
    const parts = Array.from({ length: end - first }, (_, i) => 1 - Math.abs(place - first - i) / support);
    const sum = parts.reduce((total, part) => total + part, 0);
    return { first, weights: parts.map((part) => part / sum) };
  });
}

// Rows of RGBA pixels as rows of fewer or more RGB pixels.
function narrowed(pixels, width, columns) {
  const rows = pixels.length / (4 * width);
  const result = new Float32Array(3 * columns.length * rows);
  let place = 0;
  for (let row = 0; row < rows; row += 1) {
    for (const { first, weights } of columns) {
      let source = 4 * (row * width + first);
      for (const weight of weights) {
        for (let channel = 0; channel < 3; channel += 1) result[place + channel] += weight * pixels[source + channel];
        source += 4;
      }
      place += 3;
    }
  }
  return result;
}

// As Python's round.
export function roundHalfToEven(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}
