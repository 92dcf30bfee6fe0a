// The second look at small boxes, as maskwright/onnx/second_look.py takes it. `model` is an exported file's metadata.

import { roundHalfToEven } from "./preparation.js";

// Whether a box, xyxy in pixels of the network's input, gets one.
export function isSmall([x1, y1, x2, y2], { second_look: look }) {
  return look !== null && Math.max(x2 - x1, y2 - y1) < look.below;
}

// The square part [left, top, right, bottom] of a picture around a box in its pixels.
export function squareAround([height, width], box, { second_look: look }) {
  const [x1, y1, x2, y2] = box.map(Math.fround);
  const side = Math.max(1, roundHalfToEven(look.context * Math.max(x2 - x1, y2 - y1)));
  const [left, right] = partAround((x1 + x2) / 2, side, width);
  const [top, bottom] = partAround((y1 + y2) / 2, side, height);
  return [left, top, right, bottom];
}

function partAround(center, wanted, length) {
  const side = Math.min(wanted, length);
  const start = roundHalfToEven(Math.min(Math.max(center - side / 2, 0), length - side));
  return [start, start + side];
}

// What both looks at a box say together: each {probabilities, side, score, logit}, the last where the model predicts
// the quality of masks.
export function meanOfLooks(first, second, { mask_calibration: curve }) {
  const probabilities = first.probabilities.map((value, place) => (value + second.probabilities[place]) / 2);
  const logit = first.logit === undefined ? undefined : (first.logit + second.logit) / 2;
  const score = logit === undefined ? expectedIou(probabilities) : 1 / (1 + Math.exp(-logit));
  return { probabilities, side: first.side, score: curve === null ? score : calibrated(score, curve), logit };
}

// The IoU with the truth that is to be expected if each pixel's probability were right.
function expectedIou(probabilities) {
  let [intersection, union] = [0, 0];
  for (const value of probabilities) {
    intersection += value > 0.5 ? value : 0;
    union += value > 0.5 ? 1 : value;
  }
  return intersection / Math.max(1, union);
}

// On the curve through (scores, ious), which is flat beyond its ends.
function calibrated(score, { scores, ious }) {
  const next = scores.findIndex((knot) => knot > score);
  if (next === 0) return ious[0];
  if (next < 0) return ious.at(-1);
  const share = (score - scores[next - 1]) / (scores[next] - scores[next - 1]);
  return ious[next - 1] + share * (ious[next] - ious[next - 1]);
}
