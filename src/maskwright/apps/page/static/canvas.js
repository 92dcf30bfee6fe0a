// A picture with masks and boxes on a canvas, and boxes drawn on it by mouse, finger, pen or keys. It knows no server
// and no page, so that several pages can share it.
//
// A box is [x1, y1, x2, y2] in pixels of the picture. A mask is {x, y, width, height, runs}: its tight box, and the
// lengths of the runs of pixels outside and inside of it in turn, row by row, the first outside.

const SMALLEST_BOX = 2; // pixels on the screen; less is a click
const EDGE_MARGIN = 0.35; // around a box that the view is set on, in sides of it

export class BoxCanvas {
  // canvas: the element; its size follows its style. onBox(box): the box that counts now, after drawing or undoing;
  // null where none is left. onMessage(text): what a screen reader should say.
  constructor(canvas, { onBox = () => {}, onMessage = () => {} } = {}) {
    this.canvas = canvas;
    this.onBox = onBox;
    this.onMessage = onMessage;
    this.context = canvas.getContext("2d");
    this.picture = null;
    this.size = [1, 1];
    this.view = [0, 0, 1, 1];
    this.instances = [];
    this.boxes = [];
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
    this.boxes = [];
    this.pending = null;
    this.draw();
  }

  // Of each: box, mask or null, colour [red, green, blue].
  setInstances(instances) {
    this.instances = instances.map((one) => ({ ...one, layer: one.mask ? maskLayer(one.mask, one.colour) : null }));
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

  // Take the last drawn box back; whether there was one.
  undo() {
    if (!this.boxes.length) return false;
    this.boxes.pop();
    this.onBox(this.boxes.at(-1) ?? null);
    return true;
  }

  listen() {
    this.canvas.addEventListener("pointerdown", (event) => {
      if (!this.drawing || event.button !== 0) return;
      event.preventDefault();
      this.canvas.focus();
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

  // Arrow keys move the box, with shift its lower right corner; Enter takes it.
  key(event) {
    if (!this.drawing || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Enter" && this.pending) {
      this.finish();
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
      this.boxes.push(box);
      this.onBox(box);
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

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    this.canvas.width = Math.max(1, Math.round(clientWidth * ratio));
    this.canvas.height = Math.max(1, Math.round(clientHeight * ratio));
    if (!this.picture) return;
    const { scale, left, top } = this.fit();
    this.context.setTransform(scale * ratio, 0, 0, scale * ratio, left * ratio, top * ratio);
    this.context.imageSmoothingEnabled = true;
    this.context.drawImage(this.picture, 0, 0, ...this.size);
    for (const { box, mask, layer } of this.instances) {
      if (layer && this.masksVisible) {
        this.context.imageSmoothingEnabled = false;
        this.context.drawImage(layer, mask.x, mask.y, mask.width, mask.height);
      }
      if (box) this.strokeBox(box, scale, "#ffffff");
    }
    if (this.pending) this.strokeBox(this.pending, scale, "#ffe14d");
  }

  // Dashes on black can be seen on any ground.
  strokeBox([x1, y1, x2, y2], scale, colour) {
    this.context.lineWidth = 2 / scale;
    this.context.setLineDash([]);
    this.context.strokeStyle = "#000000";
    this.context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    this.context.setLineDash([6 / scale, 4 / scale]);
    this.context.strokeStyle = colour;
    this.context.strokeRect(x1, y1, x2 - x1, y2 - y1);
    this.context.setLineDash([]);
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
  if (!width || !height) return null;
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
