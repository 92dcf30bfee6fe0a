// The demo page: a picture, objects in it (from drawn boxes, or found by a model), and files of them. Names of files and
// classes become text, never HTML.

import { once, tell } from "./actions.js";
import { BoxCanvas } from "./canvas.js";
import { cocoFile, cutOutFiles, maskFiles, plainName, save, zip } from "./downloads.js";
import * as segmenter from "./segmenter.js";

const TABS = ["boxes", "objects", "panoptic"];
const HELP = "Drag on the picture to draw a box around an object.";
const find = (id) => document.getElementById(id);

let about = null; // what the segmenter tells of itself
let tab = null;
let picture = null; // {name, width, height}
let lists = {}; // of the tabs that are not shown: their objects, for the canvas
let lastId = 0;
const thresholds = { boxes: 0.5, objects: 0.3, panoptic: 0.3 };
const colours = new Map(); // of objects and classes, as #rrggbb
const rows = new Map(); // of the list, by the object's id

const canvas = new BoxCanvas(find("canvas"), { maskOf, onChange: showObjects, onMessage: tell });

async function start() {
  tell("");
  about = await segmenter.start();
  for (const name of TABS) find(name).hidden = !about.models[name];
  find("tabs").hidden = Object.keys(about.models).length === 1;
  await select(TABS.find((name) => about.models[name]));
  tell("Choose or drop a picture, or take the example.");
}

async function open(file) {
  if (!file) return;
  if (file.size > about.limits.bytes) throw new Error(`This file is larger than ${about.limits.bytes / 1e6} MB.`);
  tell(`Reading ${file.name}`);
  const shown = await segmenter.open(file);
  picture = { name: file.name, width: shown.width, height: shown.height };
  lists = {};
  find("invitation").hidden = true;
  canvas.show(shown.picture, shown.width, shown.height);
  showObjects();
  await (tab === "boxes" ? tell(HELP) : search());
}

async function openExample() {
  const content = await (await fetch("static/cat.jpg")).blob();
  await open(new File([content], "cat.jpg", { type: "image/jpeg" }));
}

async function select(name) {
  lists[tab] = canvas.exchange(lists[name]);
  tab = name;
  for (const other of TABS) {
    find(other).setAttribute("aria-selected", String(other === tab));
    find(other).tabIndex = other === tab ? 0 : -1;
  }
  find("name").textContent = about.models[tab].name;
  find("stage").setAttribute("aria-labelledby", tab);
  find("category-label").hidden = tab !== "boxes";
  find("threshold").value = thresholds[tab];
  showThreshold();
  canvas.setDrawing(tab === "boxes");
  showObjects();
  if (!picture) return;
  if (tab === "boxes") tell(HELP);
  else if (canvas.past.length === 0) await search();
}

async function search() {
  tell("Searching");
  const found = await segmenter.find(tab, thresholds[tab]);
  canvas.change(found.map((one) => object(one, one.category ?? "object")));
  tell(found.length ? `${found.length} found` : "Nothing found; a lower threshold finds more.");
}

const object = (found, category) => ({ ...found, id: (lastId += 1), category, threshold: thresholds[tab] });

async function maskOf(box) {
  if (!picture) throw new Error("There is no picture yet.");
  if (canvas.drawn.length >= about.limits.boxes) throw new Error(`A picture has at most ${about.limits.boxes} boxes.`);
  tell("Asking for the mask");
  const written = box.map((corner) => Math.round(100 * corner) / 100); // as in files: they give the same mask again
  const [found] = await segmenter.masksOf([written], thresholds.boxes);
  if (!found.mask) throw new Error("The model sees nothing in this box; draw another one.");
  tell(`Mask ${canvas.drawn.length + 1}, quality ${found.quality.toFixed(2)}`);
  return object(found, find("category").value.trim() || "object");
}

// The masks of drawn boxes at the threshold of now.
async function renew() {
  const old = canvas.drawn.filter((one) => one.threshold !== thresholds.boxes);
  if (!old.length) return;
  const found = await segmenter.masksOf(old.map((one) => one.box), thresholds.boxes);
  old.forEach((one, index) => Object.assign(one, { mask: found[index].mask, threshold: thresholds.boxes }));
  showObjects();
  const empty = canvas.drawn.filter((one) => !one.mask).length;
  tell(empty ? `${empty} of ${old.length} masks are empty at this threshold` : "");
}

async function undo() {
  if (!canvas.undo()) tell("There is nothing to undo.");
  else if (tab === "boxes") await renew();
}

function changeThreshold() {
  thresholds[tab] = Number(find("threshold").value);
  if (picture) return tab === "boxes" ? renew() : search();
}

function showThreshold() {
  find("threshold-value").textContent = Number(find("threshold").value).toFixed(2);
}

const colourKey = ({ id, category }) => (find("by-class").ariaPressed === "true" ? `class ${category}` : `object ${id}`);

function colourOf(one) {
  const key = colourKey(one);
  if (!colours.has(key)) colours.set(key, paletteColour(colours.size));
  return colours.get(key);
}

// Hues that are far apart, the first orange.
function paletteColour(index) {
  const hue = (25 + index * 222.5) % 360;
  const channel = (offset) => {
    const place = (offset + hue / 30) % 12;
    const value = 0.56 - 0.44 * Math.max(-1, Math.min(place - 3, 9 - place, 1));
    return Math.round(255 * value).toString(16).padStart(2, "0");
  };
  return `#${channel(0)}${channel(8)}${channel(4)}`;
}

const channels = (hex) => [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));

function paint(marked = null) {
  canvas.setInstances(
    canvas.drawn.map((one) => ({ ...one, colour: channels(colourOf(one)), marked: one.id === marked })),
  );
}

function showObjects() {
  const objects = canvas.drawn;
  paint();
  const ids = new Set(objects.map((one) => one.id));
  for (const [id, row] of rows) {
    if (ids.has(id)) continue;
    row.remove();
    rows.delete(id);
  }
  objects.forEach((one, index) => showRow(one, index));
  const names = [...new Set(objects.map((one) => one.category))];
  find("categories").replaceChildren(...names.map((name) => new Option("", name)));
  const label = picture ? `${picture.name}: ${objects.length} objects` : "No picture";
  find("canvas").setAttribute("aria-label", label);
  update();
}

function showRow(one, index) {
  if (!rows.has(one.id)) rows.set(one.id, newRow(one.id));
  const row = rows.get(one.id);
  const list = find("objects-list");
  if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null);
  const told = [index, colourOf(one), one.category, one.mask ? one.quality.toFixed(2) : "empty"];
  if (row.told?.join() === told.join()) return; // there may be hundreds of rows
  row.told = told;
  const [colour, category, quality, remove] = row.children;
  [colour.value, category.value, quality.textContent] = told.slice(1);
  colour.ariaLabel = `Colour of object ${index + 1}`;
  category.ariaLabel = `Class of object ${index + 1}`;
  remove.ariaLabel = `Remove object ${index + 1}`;
}

function newRow(id) {
  const make = (name, properties) => Object.assign(document.createElement(name), properties);
  const colour = make("input", { type: "color" });
  const category = make("input", { type: "text", maxLength: 100, autocomplete: "off" });
  category.setAttribute("list", "categories");
  const quality = make("span", { className: "quality", title: "Expected quality of the mask" });
  const remove = make("button", { type: "button", textContent: "✕" });
  const row = make("li", {});
  row.append(colour, category, quality, remove);
  const own = () => canvas.drawn.find((one) => one.id === id);
  colour.addEventListener("input", () => {
    colours.set(colourKey(own()), colour.value);
    showObjects(); // others may have the colour, too
  });
  category.addEventListener("change", () => {
    const name = category.value.trim() || "object";
    canvas.change(canvas.drawn.map((one) => (one.id === id ? { ...one, category: name } : one)));
  });
  remove.addEventListener("click", () => {
    const next = row.nextSibling ?? row.previousSibling;
    canvas.change(canvas.drawn.filter((one) => one.id !== id));
    (next?.lastChild ?? find("canvas")).focus();
  });
  for (const event of ["focusin", "pointerenter"]) row.addEventListener(event, () => paint(id));
  for (const event of ["focusout", "pointerleave"]) row.addEventListener(event, () => paint());
  return row;
}

async function download(kind) {
  const objects = canvas.drawn.filter((one) => one.mask);
  const stem = plainName(picture.name);
  if (kind === "coco") {
    save(cocoFile(picture, objects, { ...about.models[tab], version: about.version }), `${stem}.json`);
  } else if (kind === "masks") {
    save(zip(await maskFiles(picture, objects)), `${stem}_masks.zip`);
  } else {
    tell("Reading all pixels of the picture");
    save(zip(await cutOutFiles(picture, objects, await segmenter.original())), `${stem}_cut_outs.zip`);
  }
  tell(`${objects.length} objects downloaded`);
}

function update() {
  const hasObjects = canvas.drawn.some((one) => one.mask);
  find("clear").disabled = !canvas.drawn.length;
  find("undo").disabled = !canvas.past.length && !canvas.waiting.length;
  for (const id of ["save-coco", "save-masks", "save-cut-outs"]) find(id).disabled = !hasObjects;
}

function toggle(button) {
  button.ariaPressed = String(button.ariaPressed !== "true");
  return button.ariaPressed === "true";
}

const ACTIONS = {
  choose: () => find("file").click(),
  example: () => once(openExample),
  undo: () => once(undo),
  clear: () => canvas.change([]),
  hide: () => canvas.setMasksVisible(!toggle(find("hide"))),
  "by-class": () => {
    toggle(find("by-class"));
    showObjects();
  },
  "save-coco": () => once(() => download("coco")),
  "save-masks": () => once(() => download("masks")),
  "save-cut-outs": () => once(() => download("cut-outs")),
  ...Object.fromEntries(TABS.map((name) => [name, () => once(() => select(name))])),
};
for (const [id, action] of Object.entries(ACTIONS)) find(id).addEventListener("click", action);

find("file").addEventListener("change", () => {
  const [file] = find("file").files;
  find("file").value = ""; // the same file can be chosen again
  once(() => open(file));
});
find("threshold").addEventListener("input", showThreshold);
find("threshold").addEventListener("change", () => once(changeThreshold));
find("tabs").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const shown = TABS.filter((name) => !find(name).hidden);
  if (!step) return;
  const next = shown.at((shown.indexOf(tab) + step) % shown.length);
  find(next).focus();
  once(() => select(next));
});
document.addEventListener("keydown", (event) => {
  const isUndo = (event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z";
  if (!isUndo || event.target.matches("input[type=text]")) return;
  event.preventDefault();
  ACTIONS.undo();
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  find("stage").classList.add("over");
});
document.addEventListener("dragleave", () => find("stage").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  find("stage").classList.remove("over");
  once(() => open(event.dataTransfer.files[0]));
});

update();
once(start);
