// Probabilities on a box to a mask of the picture's pixels, as maskwright/onnx/paste.py pastes them.

const SMALLEST_EXTENT = 1e-4; // of the picture, in the frame `corner`

// The mask of pixels over the threshold as `canvas.js` takes it, or null where there are none.
// probabilities: Float32 [size, size], on the grid that the frame (`corner` or `pixel`) lays on the box (xyxy).
export function paste(probabilities, size, box, frame, [height, width], threshold) {
  const [left, top, right, bottom] = box.map(Math.fround);
  const columns = pixelIndices(left, right, width, size, frame);
  const rows = pixelIndices(top, bottom, height, size, frame);
  const region = new Uint8Array(rows.indices.length * columns.indices.length);
  let place = 0;
  for (const row of rows.indices) {
    const line = Float32Array.from({ length: size }, (_, column) =>
      between((index) => probabilities[index * size + column], row, size),
    );
    for (const column of columns.indices) {
      region[place] = between((index) => line[index], column, size) > threshold ? 1 : 0;
      place += 1;
    }
  }
  return tight(region, columns.indices.length, columns.first, rows.first);
}

// Continuous mask indices of the pixels that the box covers along one axis, and the first such pixel.
function pixelIndices(low, high, length, size, frame) {
  const indexOf = frame === "corner" ? cornerIndex(low, high, length, size) : null;
  const indices = [];
  let first = 0;
  for (let pixel = 0; pixel < length; pixel += 1) {
    const center = pixel + 0.5;
    let index;
    if (indexOf) {
      index = indexOf(pixel);
      if (index < 0 || index > size - 1) continue;
    } else {
      if (center < low || center >= high) continue;
      index = Math.min(Math.max(((center - low) / (high - low)) * size - 0.5, 0), size - 1);
    }
    if (!indices.length) first = pixel;
    indices.push(index);
  }
  return { indices, first };
}

// In single precision, as the originals compute it: rounding decides which pixels on an edge are covered.
function cornerIndex(low, high, length, size) {
  const single = Math.fround;
  const start = single(low / length);
  const extent = Math.max(single(single(high / length) - start), single(SMALLEST_EXTENT));
  const first = single(-start / extent);
  const last = single(single(1 - start) / extent);
  if (length === 1) return () => single(single(single(first + last) * 0.5) * (size - 1));
  const step = single(single(single(last - first) * (size - 1)) / (length - 1));
  return (pixel) => single(single(first * (size - 1)) + single(pixel * step));
}

function between(valueAt, index, size) {
  const below = Math.floor(index);
  const start = valueAt(below);
  return start + (index - below) * (valueAt(Math.min(below + 1, size - 1)) - start);
}

// The same mask in its tight box.
function tight(region, width, left, top) {
  let [x1, y1, x2, y2] = [Infinity, Infinity, -1, -1];
  region.forEach((isInside, place) => {
    if (!isInside) return;
    const x = place % width;
    const y = Math.floor(place / width);
    [x1, y1, x2, y2] = [Math.min(x1, x), Math.min(y1, y), Math.max(x2, x), Math.max(y2, y)];
  });
  if (x2 < 0) return null;
  const runs = [0];
  for (let y = y1; y <= y2; y += 1) {
    for (let x = x1; x <= x2; x += 1) {
      const isInside = region[y * width + x];
      if (isInside === (runs.length - 1) % 2) runs[runs.length - 1] += 1;
      else runs.push(1);
    }
  }
  return { x: left + x1, y: top + y1, width: x2 - x1 + 1, height: y2 - y1 + 1, runs };
}
