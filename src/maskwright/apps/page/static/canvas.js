// A picture with masks and boxes on a canvas, and boxes drawn on it by mouse, finger, pen or keys, which a function
// turns into masks. It knows no server and no page, so that several pages can share it.
//
// A box is [x1, y1, x2, y2] in pixels of the picture. A mask is {x, y, width, height, runs}: its tight box, and the
// lengths of the runs of pixels outside and inside of it in turn, row by row, the first outside.

const SMALLEST_BOX = 2; // pixels on the screen; less is a click
const EDGE_MARGIN = 0.35; // around a box that the view is set on, in sides of it

export class BoxCanvas {
  // canvas: the element; its size follows its style. maskOf(box): a promise of what the page keeps of a drawn box, its
  // mask above all; whoever makes it. onChange(): that list, `drawn`, has changed, or `waiting`, the boxes without an
  // answer. onMessage(text, isError): what a screen reader should say.
  constructor(canvas, { maskOf, onChange = () => {}, onMessage = () => {} }) {
    this.canvas = canvas;
    this.maskOf = maskOf;
    this.onChange = onChange;
    this.onMessage = onMessage;
    this.context = canvas.getContext("2d");
    this.picture = null;
    this.size = [1, 1];
    this.view = [0, 0, 1, 1];
    this.instances = [];
    this.layers = new WeakMap(); // of masks: {colour, layer}
    this.drawn = []; // what maskOf gave of each box
    this.past = []; // the lists before, for undo
    this.waiting = []; // boxes whose masks are not there yet
    this.answered = Promise.resolve(); // the last of them
    this.frame = null;
    this.drawing = false;
    this.masksVisible = true;
    this.pending = null; // the box that is being drawn
    this.pointer = null;
    this.listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  // picture: anything that drawImage takes. width, height: of the frame of boxes and masks, which may be larger.
  show(picture, width, height) {
    this.picture = picture;
    this.size = [width, height];
    this.view = [0, 0, width, height];
    this.exchange();
    this.pending = null;
    this.draw();
  }

  // Of each: box, mask or null, colour [red, green, blue], and whether it is marked.
  setInstances(instances) {
    this.instances = instances;
    this.draw();
  }

  // Zoom to a box; null shows the whole picture.
  focus(box) {
    const [width, height] = this.size;
    this.view = [0, 0, width, height];
    if (box) {
      const reach = EDGE_MARGIN * Math.max(box[2] - box[0], box[3] - box[1]);
      const grown = [box[0] - reach, box[1] - reach, box[2] + reach, box[3] + reach];
      this.view = [0, 1, 2, 3].map((side) => clamp(grown[side], 0, side % 2 ? height : width));
    }
    this.draw();
  }

  // While drawing, a finger on the canvas draws and does not scroll; start is the box that arrow keys move.
  setDrawing(drawing, start = null) {
    this.drawing = drawing;
    this.pending = drawing && start ? [...start] : null;
    this.pointer = null;
    this.canvas.style.touchAction = drawing ? "none" : "";
    this.canvas.style.cursor = drawing ? "crosshair" : "";
    this.draw();
  }

  setMasksVisible(visible) {
    this.masksVisible = visible;
    this.draw();
  }

  // Show another list of masks, with its own past; the one that was there before, to come back to.
  exchange({ drawn, past } = { drawn: [], past: [] }) {
    const before = { drawn: this.drawn, past: this.past };
    Object.assign(this, { drawn, past, waiting: [] });
    return before;
  }

  // Put another list in place of `drawn`, which undo brings back.
  change(drawn) {
    this.past.push(this.drawn);
    this.drawn = drawn;
    this.onChange();
    this.draw();
  }

  // Take the last change of `drawn` back, or a box that still waits for its mask; whether there was one.
  undo() {
    if (this.waiting.length) this.waiting.pop();
    else if (this.past.length) this.drawn = this.past.pop();
    else return false;
    this.onChange();
    this.draw();
    return true;
  }

  // One box after the other, so that `drawn` has their order.
  ask(box) {
    this.waiting.push(box);
    this.onChange();
    this.answered = this.answered.then(() => this.answer(box));
  }

  async answer(box) {
    if (!this.waiting.includes(box)) return;
    let given, failure;
    try {
      given = await this.maskOf(box);
    } catch (error) {
      failure = error;
    }
    if (!this.waiting.includes(box)) return; // undone, or another picture
    this.waiting = this.waiting.filter((other) => other !== box);
    if (failure) {
      this.onChange();
      this.draw();
      this.onMessage(failure.message, true);
    } else {
      this.change([...this.drawn, given]);
    }
  }

  listen() {
    this.canvas.addEventListener("pointerdown", (event) => {
      if (!this.drawing || event.button !== 0) return;
      event.preventDefault();
      this.canvas.focus({ preventScroll: true });
      this.canvas.setPointerCapture(event.pointerId);
      this.pointer = this.place(event);
      this.pending = [...this.pointer, ...this.pointer];
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!this.pointer) return;
      this.pending = ordered([...this.pointer, ...this.place(event)]);
      this.draw();
    });
    this.canvas.addEventListener("pointerup", () => {
      if (!this.pointer) return;
      this.pointer = null;
      this.finish();
    });
    this.canvas.addEventListener("pointercancel", () => {
      this.pointer = null;
      this.pending = null;
      this.draw();
    });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  // Arrow keys move the box, with shift its lower right corner; Enter takes it, Escape drops it.
  key(event) {
    if (!this.drawing || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Enter" && this.pending) {
      this.finish();
    } else if (event.key === "Escape") {
      this.pending = null;
      this.pointer = null;
      this.draw();
      return; // the page may have more to do
    } else if (event.key.startsWith("Arrow")) {
      const [width, height] = this.size;
      this.pending ??= [width / 4, height / 4, (3 * width) / 4, (3 * height) / 4];
      const step = Math.max(1, Math.max(this.view[2] - this.view[0], this.view[3] - this.view[1]) / 100);
      const by = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
      this.pending = event.shiftKey ? this.stretched(by) : this.moved(by);
      this.onMessage(`Box ${this.pending.map(Math.round).join(", ")}`);
      this.draw();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  stretched([right, down]) {
    const [x1, y1, x2, y2] = this.pending;
    return [x1, y1, clamp(x2 + right, x1 + 1, this.size[0]), clamp(y2 + down, y1 + 1, this.size[1])];
  }

  moved([right, down]) {
    const [x1, y1, x2, y2] = this.pending;
    const left = clamp(x1 + right, 0, Math.max(0, this.size[0] - (x2 - x1)));
    const top = clamp(y1 + down, 0, Math.max(0, this.size[1] - (y2 - y1)));
    return [left, top, left + x2 - x1, top + y2 - y1];
  }

  finish() {
    const box = this.pending;
    this.pending = null;
    const { scale } = this.fit();
    if (box && Math.min(box[2] - box[0], box[3] - box[1]) * scale >= SMALLEST_BOX) {
      this.ask(box);
    }
    this.draw();
  }

  // The place of an event on the picture.
  place(event) {
    const bounds = this.canvas.getBoundingClientRect();
    const { scale, left, top } = this.fit();
    const x = (event.clientX - bounds.left - left) / scale;
    const y = (event.clientY - bounds.top - top) / scale;
    return [clamp(x, 0, this.size[0]), clamp(y, 0, this.size[1])];
  }

  // How the picture lies on the canvas, in pixels of the style: screen = picture * scale + (left, top).
  fit() {
    const [x1, y1, x2, y2] = this.view;
    const { clientWidth, clientHeight } = this.canvas;
    const scale = Math.min(clientWidth / (x2 - x1), clientHeight / (y2 - y1)) || 1;
    const left = (clientWidth - (x2 - x1) * scale) / 2 - x1 * scale;
    const top = (clientHeight - (y2 - y1) * scale) / 2 - y1 * scale;
    return { scale, left, top };
  }

  // Once before the screen is drawn again, however much has changed.
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.paint();
    });
  }

  paint() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = Math.max(1, Math.round(clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(clientHeight * ratio));
    if (!this.picture) return;
    const { scale, left, top } = this.fit();
    this.context.setTransform(scale * ratio, 0, 0, scale * ratio, left * ratio, top * ratio);
    this.context.imageSmoothingEnabled = true;
    this.context.drawImage(this.picture, 0, 0, ...this.size);
    this.context.imageSmoothingEnabled = false;
    for (const { mask, colour } of this.masksVisible ? this.instances : []) {
      if (mask?.width) this.context.drawImage(this.layer(mask, colour), mask.x, mask.y, mask.width, mask.height);
    }
    const [marked, others] = [true, false].map((is) => this.instances.filter((one) => Boolean(one.marked) === is));
    this.strokeBoxes(others.map(({ box }) => box), scale, "#ffffff");
    this.strokeBoxes([...marked.map(({ box }) => box), ...this.waiting, this.pending].filter(Boolean), scale, "#ffe14d");
  }

  layer(mask, colour) {
    const known = this.layers.get(mask);
    if (known?.colour.join() === colour.join()) return known.layer;
    const layer = maskLayer(mask, colour);
    this.layers.set(mask, { colour, layer });
    return layer;
  }

  // A bright line on a dark one can be seen on any ground; without dashes, which take long for hundreds of boxes.
  strokeBoxes(boxes, scale, colour) {
    for (const [style, width] of [["#000000", 4], [colour, 2]]) {
      this.context.strokeStyle = style;
      this.context.lineWidth = width / scale;
      for (const [x1, y1, x2, y2] of boxes) this.context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    }
  }
}

// One byte per pixel of a mask's box, row by row: 1 inside.
export function maskPixels({ width, height, runs }) {
  const pixels = new Uint8Array(width * height);
  let place = 0;
  runs.forEach((length, index) => {
    if (index % 2) pixels.fill(1, place, place + length);
    place += length;
  });
  return pixels;
}

// A mask as a picture of its own: half transparent, with a solid edge.
function maskLayer(mask, [red, green, blue]) {
  const { width, height } = mask;
  const inside = maskPixels(mask);
  const layer = document.createElement("canvas");
  layer.width = width;
  layer.height = height;
  const image = new ImageData(width, height);
  for (let place = 0; place < inside.length; place += 1) {
    if (!inside[place]) continue;
    const x = place % width;
    const isEdge =
      x === 0 || x === width - 1 || !inside[place - 1] || !inside[place + 1] ||
      !inside[place - width] || !inside[place + width];
    image.data.set([red, green, blue, isEdge ? 255 : 110], 4 * place);
  }
  layer.getContext("2d").putImageData(image, 0, 0);
  return layer;
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

function ordered([x1, y1, x2, y2]) {
  return [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];
}
