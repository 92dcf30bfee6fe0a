// The page of `maskwright review`: shows the worst mask that nobody has looked at, and sends what is decided.
// Names out of files become text, never HTML.

import { once, tell } from "./actions.js";
import { BoxCanvas } from "./canvas.js";
import { ask, loadPicture } from "./requests.js";

const ORANGE = [255, 96, 0];
const BLUE = [40, 130, 255];
const HISTORY = "maskwright-review-history"; // of this tab's decisions, for undo after a reload
const find = (id) => document.getElementById(id);

let shown = null; // the mask on the canvas, as the server tells it
let redrawn = null; // the mask of the box that was drawn last, or null

const canvas = new BoxCanvas(find("canvas"), { maskOf, onChange: showRedrawn, onMessage: tell });

const categoryQuery = () => (find("category").value === "" ? "" : `category=${find("category").value}`);

async function next(after = null) {
  const skipped = after === null ? "" : `after=${after}`;
  const mask = await ask(`api/next?${[categoryQuery(), skipped].filter(Boolean).join("&")}`);
  await Promise.all([show(mask), showState()]);
}

async function show(mask) {
  const changed = shown?.image !== mask?.image;
  shown = mask;
  redrawn = mask?.redrawn ?? null;
  update();
  stopDrawing();
  find("mask").hidden = mask === null;
  if (mask === null) {
    canvas.picture = null;
    canvas.setInstances([]);
    find("canvas").setAttribute("aria-label", "No picture");
    tell("Every mask is reviewed. maskwright review --apply writes the decisions into a file.");
    return;
  }
  describe();
  if (changed || canvas.picture === null) {
    canvas.picture = null;
    canvas.setInstances([]);
    const picture = await load(mask.image);
    if (shown !== mask) return;
    canvas.show(picture, mask.size[1], mask.size[0]);
  } else {
    canvas.show(canvas.picture, mask.size[1], mask.size[0]);
  }
  drawMasks();
  zoom();
}

function load(image) {
  return loadPicture(`api/pictures/${image}`).catch((error) => {
    throw new Error(`${error.message} (skip goes on)`);
  });
}

function describe() {
  const quality = shown.quality.toFixed(3);
  find("class").textContent = shown.category || "none";
  find("quality").textContent = redrawn ? `${quality}, redrawn ${redrawn.quality.toFixed(3)}` : quality;
  find("picture").textContent = shown.picture;
  find("annotation").textContent = String(shown.id);
  find("box").textContent = (redrawn?.box ?? shown.box).map((value) => Math.round(value)).join(", ");
  find("accept-text").textContent = redrawn ? "Keep new mask" : "Accept";
  const verdict = shown.verdict ? `, ${shown.verdict} so far` : "";
  find("canvas").setAttribute("aria-label", `${shown.category} in ${shown.picture}, quality ${quality}${verdict}`);
  tell(`${shown.category || "Mask"}, quality ${quality}${verdict}`);
}

function drawMasks() {
  const { box, mask } = redrawn ?? shown;
  canvas.setInstances([{ box, mask, colour: redrawn ? BLUE : ORANGE }]);
}

function zoom() {
  const whole = find("whole").getAttribute("aria-pressed") === "true";
  canvas.focus(whole || !shown ? null : shown.box);
}

function maskOf(box) {
  tell("Asking for the mask of the new box");
  return ask("api/redraw", { position: shown.position, box });
}

function showRedrawn() {
  redrawn = canvas.drawn.at(-1) ?? shown.redrawn;
  describe();
  drawMasks();
  if (redrawn) tell(`New mask, quality ${redrawn.quality.toFixed(3)}. Keep it, draw again, or undo.`);
}

async function decide(verdict) {
  if (!shown) return;
  if (canvas.waiting.length) {
    tell("The mask of the new box is not there yet; nothing was decided.");
    return;
  }
  const { position } = shown;
  const body = verdict === "redrawn" ? { position, verdict, box: redrawn.box } : { position, verdict };
  await ask("api/decisions", body);
  remember([...history(), position]);
  await next();
}

const accept = () => decide(redrawn ? "redrawn" : "accepted");
const reject = () => decide("rejected");
const skip = () => (shown ? next(shown.position) : undefined);

// First the boxes that were drawn, then the decisions of this tab.
async function undo() {
  if (canvas.undo()) return;
  const decided = history();
  if (!decided.length) {
    tell("There is nothing to undo.");
    return;
  }
  const position = decided.at(-1);
  await ask("api/decisions", { position, verdict: null });
  remember(decided.slice(0, -1));
  await Promise.all([show(await ask(`api/masks/${position}`)), showState()]);
  tell("The last decision is taken back.");
}

function history() {
  try {
    return JSON.parse(sessionStorage.getItem(HISTORY)) ?? [];
  } catch {
    return [];
  }
}

function remember(positions) {
  sessionStorage.setItem(HISTORY, JSON.stringify(positions));
}

function toggleDrawing() {
  if (!shown || !canvas.picture) return;
  const drawing = !canvas.drawing;
  canvas.setDrawing(drawing, drawing ? (redrawn ?? shown).box : null);
  find("redraw").setAttribute("aria-pressed", String(drawing));
  if (drawing) {
    canvas.canvas.focus();
    tell("Draw a box: drag on the picture, or move it with arrow keys and press Enter.");
  }
}

function stopDrawing() {
  canvas.setDrawing(false);
  find("redraw").setAttribute("aria-pressed", "false");
}

function toggle(button) {
  const pressed = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(pressed));
  return pressed;
}

async function showState() {
  const state = await ask(`api/state?${categoryQuery()}`);
  find("file").textContent = state.file;
  const reviewed = Object.values(state.counts).reduce((sum, count) => sum + count, 0);
  const { accepted, rejected, redrawn: again } = state.counts;
  find("progress").max = Math.max(1, state.masks);
  find("progress").value = reviewed;
  find("counts").textContent =
    `${reviewed} of ${state.masks}: ${accepted} accepted, ${rejected} rejected, ${again} redrawn`;
  showCategories(state.categories);
  find("bins").replaceChildren(...state.bins.map(row));
  find("rest").textContent = state.rest.masks
    ? `${state.rest.masks} masks, acceptable: ${percent(state.rest.share)} (${range(state.rest.interval)})`
    : "";
}

function showCategories(names) {
  const select = find("category");
  if (select.options.length > 1) return;
  names.forEach((name, number) => select.add(new Option(name || "none", String(number))));
}

function row(bin) {
  const cells = [
    `${bin.low.toFixed(1)} to ${bin.high.toFixed(1)}`,
    bin.masks,
    bin.reviewed,
    percent(bin.share),
    range(bin.interval),
    bin.mean_quality === null ? "" : bin.mean_quality.toFixed(3),
  ];
  const line = document.createElement("tr");
  line.append(...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
  return line;
}

const percent = (share) => (share === null ? "not known yet" : `${Math.round(100 * share)} %`);
const range = ([low, high]) => `${Math.round(100 * low)} to ${Math.round(100 * high)} %`;

function update() {
  for (const id of ["accept", "reject", "skip", "redraw"]) find(id).disabled = !shown;
}

const ACTIONS = {
  accept: () => once(accept),
  reject: () => once(reject),
  redraw: toggleDrawing,
  skip: () => once(skip),
  undo: () => once(undo),
  whole: () => {
    toggle(find("whole"));
    zoom();
  },
  hide: () => canvas.setMasksVisible(!toggle(find("hide"))),
};
const KEYS = { a: "accept", r: "reject", d: "redraw", s: "skip", u: "undo", z: "whole", h: "hide" };

for (const [id, action] of Object.entries(ACTIONS)) find(id).addEventListener("click", action);
find("category").addEventListener("change", () => once(next));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.key === "Escape" && canvas.drawing) {
    stopDrawing();
    return;
  }
  const action = KEYS[event.key.toLowerCase()];
  if (!action || !find("keys").checked || event.target.matches("select")) return;
  event.preventDefault();
  if (!find(action).disabled) ACTIONS[action]();
});

update();
once(next);
