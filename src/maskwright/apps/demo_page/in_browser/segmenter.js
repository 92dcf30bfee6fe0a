// What the demo page asks about pictures, answered in the browser itself: this file takes the place of the one that asks
// a server. Functions and objects are those of the other; the page has no tab that would `find`.

const LONGEST_SIDE = 2048; // of the picture that is shown

const worker = new Worker(new URL("./model_worker.js", import.meta.url), { type: "module" });
const broken = new Promise((_, reject) => {
  worker.addEventListener("error", () => reject(new Error("A file of this page is missing, or this browser is too old.")));
});
broken.catch(() => {}); // whoever asks the worker is told

let limits = null;
let opened = null; // the file of the worker's picture

export async function start() {
  const about = await (await fetch(new URL("./model.json", import.meta.url))).json();
  limits = about.limits;
  return about;
}

export async function open(file) {
  const { naturalWidth: width, naturalHeight: height } = await header(file);
  if (width * height > limits.pixels) {
    const most = limits.pixels / 1e6;
    throw new Error(`This picture has ${width} x ${height} pixels, and at most ${most} million are taken.`);
  }
  const bitmap = await decode(file);
  const shown = { picture: reduced(bitmap), width: bitmap.width, height: bitmap.height };
  await ask("open", [bitmap], [bitmap]);
  opened = file;
  return shown;
}

export const masksOf = (boxes, threshold) => ask("masksOf", [boxes, threshold]);

export const original = () => decode(opened);

// The answer of the worker; what is transferred is no longer here.
function ask(action, given, transferred = []) {
  const { port1, port2 } = new MessageChannel();
  const answer = new Promise((resolve, reject) => {
    port1.onmessage = ({ data }) => ("error" in data ? reject(new Error(data.error)) : resolve(data.result));
  });
  worker.postMessage({ action, given }, [port2, ...transferred]);
  return Promise.race([answer, broken]);
}

// A picture as an element: browsers read its size and leave the rest for later.
async function header(file) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: reject }));
    return image;
  } catch {
    throw unreadable();
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

// All pixels, upright, with the values of the file: its colour profile is not applied, as in Python.
async function decode(file) {
  try {
    return await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw unreadable();
  }
}

const unreadable = () => new Error("This is not a picture that this browser can read.");

// The picture for the screen, on white.
function reduced(bitmap) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const size = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(scale * side)));
  const canvas = new OffscreenCanvas(...size);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, ...size);
  context.drawImage(bitmap, 0, 0, ...size);
  return canvas;
}
