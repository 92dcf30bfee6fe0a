// What the demo page asks about pictures, answered by the server. A page without one has another `segmenter.js` with the
// same functions.
//
// An object is {box, quality, category, mask}: category is null where it is not known, mask null where it is empty;
// `canvas.js` says what boxes and masks are.

import { ask, loadPicture } from "./requests.js";

const BOXES_AT_ONCE = 50; // others have their turn in between

let opened = null; // {file, key} of the picture

// {version, limits: {bytes, pixels, boxes}, models: {boxes, objects, panoptic}}; of each model that is there {name, weights}.
export const start = () => ask("api/state");

// Make a file the picture that all else is about: {picture, width, height}, the first to be shown, the others its frame.
export async function open(file) {
  const sent = await ask("api/pictures", file);
  const picture = await loadPicture(`api/pictures/${sent.picture}`);
  opened = { file, key: sent.picture };
  return { picture, width: sent.size[1], height: sent.size[0] };
}

// The objects in boxes, in their order: pixels of a probability over the threshold.
export async function masksOf(boxes, threshold) {
  const objects = [];
  for (let first = 0; first < boxes.length; first += BOXES_AT_ONCE) {
    const some = boxes.slice(first, first + BOXES_AT_ONCE);
    objects.push(...(await about((picture) => ask("api/boxes", { picture, boxes: some, threshold }))));
  }
  return objects;
}

// The objects, or segments of a panoptic map, that a model finds: of a score of the threshold or more.
export const find = (tab, threshold) => about((picture) => ask(`api/find/${tab}`, { picture, threshold }));

// All pixels of the picture, as drawImage takes them.
export const original = () => about((key) => loadPicture(`api/pictures/${key}/original`));

// An answer about the picture; the server forgets pictures, and then they are sent again.
async function about(question) {
  const { file, key } = opened;
  try {
    return await question(key);
  } catch (error) {
    if (error.status !== 404) throw error;
    const sent = await ask("api/pictures", file);
    if (opened.file === file) opened.key = sent.picture;
    return question(sent.picture);
  }
}
