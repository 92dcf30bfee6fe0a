// Objects with masks as files: a COCO file, PNG masks, cut-outs, and zips of them. All is made in the page.
//
// picture: {name, width, height}. An object: {box, quality, category, mask}, as `canvas.js` has boxes and masks.

import { maskPixels } from "./canvas.js";

// A COCO file; of each annotation the object `maskwright` says what made its mask, and how good that should be.
export function cocoFile(picture, objects, { name, weights, version }) {
  const names = [...new Set(objects.map((one) => one.category))];
  const annotations = objects.map(({ box: [x1, y1, x2, y2], quality, category, mask }, index) => {
    const runs = columnRuns(mask, picture.height);
    return {
      id: index + 1,
      image_id: 1,
      category_id: names.indexOf(category) + 1,
      bbox: [x1, y1, rounded(x2 - x1), rounded(y2 - y1)],
      segmentation: { size: [picture.height, picture.width], counts: compressed(counts(runs, picture)) },
      area: runs.reduce((sum, [start, end]) => sum + end - start, 0),
      iscrowd: 0,
      maskwright: { model: name, weights, version, quality, inserted: ["segmentation", "area"] },
    };
  });
  const images = [{ id: 1, file_name: picture.name, height: picture.height, width: picture.width }];
  const categories = names.map((category, index) => ({ id: index + 1, name: category }));
  return new Blob([JSON.stringify({ images, annotations, categories }, null, 1)], { type: "application/json" });
}

// Of each object a black and white PNG of the whole picture: [{name, content}].
export async function maskFiles(picture, objects) {
  const files = [];
  for (const [index, one] of objects.entries()) {
    files.push({ name: fileName(picture, "mask", index, one), content: await maskPng(one.mask, picture) });
  }
  return files;
}

// Of each object its pixels in `original`, what drawImage takes, as a PNG that is transparent around them.
export async function cutOutFiles(picture, objects, original) {
  const files = [];
  for (const [index, one] of objects.entries()) {
    files.push({ name: fileName(picture, "cut_out", index, one), content: await cutOut(one.mask, original) });
  }
  return files;
}

// A zip of [{name, content}], contents being bytes that are compressed already.
export function zip(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, content } of files) {
    const text = new TextEncoder().encode(name);
    // version, flags (names in UTF-8), no compression, time and date (1 January 1980), checksum, sizes, lengths
    const shared = [[20, 2], [0x800, 2], [0, 2], [0, 2], [33, 2], [checksum(content), 4], [content.length, 4],
      [content.length, 4], [text.length, 2], [0, 2]];
    const header = numbers([[0x04034b50, 4], ...shared]);
    parts.push(header, text, content);
    directory.push(numbers([[0x02014b50, 4], [20, 2], ...shared, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]), text);
    offset += header.length + text.length + content.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = numbers([[0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [offset, 4],
    [0, 2]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// A name without its suffix, of letters and digits only: it becomes part of the names of files.
export function plainName(name) {
  return name.replace(/\.\w+$/, "").replace(/[^\p{L}\p{N}_-]+/gu, "_").slice(0, 80) || "picture";
}

function fileName(picture, kind, index, { category }) {
  return `${plainName(picture.name)}_${kind}_${index + 1}_${plainName(category)}.png`;
}

// The runs [start, end) of a mask's pixels, counted column by column, as COCO does.
function columnRuns(mask, pictureHeight) {
  const pixels = maskPixels(mask);
  const runs = [];
  for (let x = 0; x < mask.width; x += 1) {
    for (let y = 0; y < mask.height; y += 1) {
      if (!pixels[y * mask.width + x]) continue;
      const place = (mask.x + x) * pictureHeight + mask.y + y;
      if (runs.at(-1)?.[1] === place) runs.at(-1)[1] += 1;
      else runs.push([place, place + 1]);
    }
  }
  return runs;
}

function counts(runs, { width, height }) {
  const lengths = [];
  let place = 0;
  for (const [start, end] of runs) {
    lengths.push(start - place, end - start);
    place = end;
  }
  return place < width * height ? [...lengths, width * height - place] : lengths;
}

// COCO's text of run lengths: differences to the last but one, five bits to a letter.
function compressed(lengths) {
  let text = "";
  lengths.forEach((length, index) => {
    let rest = index > 2 ? length - lengths[index - 2] : length;
    for (let more = true; more; ) {
      const bits = rest & 31;
      rest >>= 5;
      more = bits & 16 ? rest !== -1 : rest !== 0;
      text += String.fromCharCode(48 + bits + (more ? 32 : 0));
    }
  });
  return text;
}

// Bytes of a PNG with one bit per pixel; canvases of many browsers are smaller than pictures.
async function maskPng(mask, { width, height }) {
  const inside = maskPixels(mask);
  const stride = 1 + Math.ceil(width / 8); // the first byte of a row says that it is not filtered
  const rows = new Uint8Array(stride * height);
  for (let place = 0; place < inside.length; place += 1) {
    if (!inside[place]) continue;
    const x = mask.x + (place % mask.width);
    const y = mask.y + Math.floor(place / mask.width);
    rows[y * stride + 1 + (x >> 3)] |= 128 >> (x & 7);
  }
  const stream = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(stream).arrayBuffer());
  const header = numbers([[width, 4], [height, 4], [1, 1], [0, 1], [0, 1], [0, 1], [0, 1]], false);
  const signature = numbers([[0x89504e47, 4], [0x0d0a1a0a, 4]], false);
  return joined([signature, chunk("IHDR", header), chunk("IDAT", data), chunk("IEND", new Uint8Array())]);
}

function chunk(name, data) {
  const content = joined([new TextEncoder().encode(name), data]);
  return joined([numbers([[data.length, 4]], false), content, numbers([[checksum(content), 4]], false)]);
}

async function cutOut(mask, original) {
  const layer = document.createElement("canvas");
  layer.width = mask.width;
  layer.height = mask.height;
  const context = layer.getContext("2d");
  context.fillStyle = "#ffffff"; // what is transparent is on white everywhere
  context.fillRect(0, 0, mask.width, mask.height);
  context.drawImage(original, -mask.x, -mask.y);
  const image = context.getImageData(0, 0, mask.width, mask.height);
  maskPixels(mask).forEach((isInside, place) => {
    if (!isInside) image.data[4 * place + 3] = 0;
  });
  context.putImageData(image, 0, 0);
  const blob = await new Promise((resolve) => layer.toBlob(resolve, "image/png"));
  if (!blob) throw new Error("This browser cannot make so large a cut-out.");
  return new Uint8Array(await blob.arrayBuffer());
}

// Bytes of [value, number of bytes] in turn.
function numbers(values, littleEndian = true) {
  return joined(
    values.map(([value, size]) => {
      const bytes = Array.from({ length: size }, (_, index) => (value >>> (8 * index)) & 255);
      return Uint8Array.from(littleEndian ? bytes : bytes.reverse());
    }),
  );
}

function joined(parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let place = 0;
  for (const part of parts) {
    all.set(part, place);
    place += part.length;
  }
  return all;
}

const CHECKSUMS = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

// CRC-32
function checksum(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CHECKSUMS[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

const rounded = (value) => Math.round(100 * value) / 100;
