"use strict";

// Maps over a picture: a click or the arrow keys choose a point, a click or the list an object.
{
  const GREY_LIGHTNESS = 0.6; // as in visualization/heat.py

  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

  async function inflate(text) {
    const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  // For each of `pixels` along a side: the cell before its centre, and how far the centre is towards the next one.
  function places(pixels, extent, cells) {
    return Array.from({ length: pixels }, (_, pixel) => {
      const at = clamp(((pixel + 0.5) / pixels) * extent - 0.5, 0, cells - 1);
      const cell = Math.min(Math.floor(at), Math.max(0, cells - 2));
      return [cell, at - cell];
    });
  }

  class Heat {
    constructor(block, maps) {
      const numbers = (name) => block.dataset[name].split(",").map(Number);
      const image = block.querySelector(".stage img");
      [, this.layers, this.height, this.width] = numbers("shape");
      [this.extentY, this.extentX] = numbers("extent");
      [this.imageHeight, this.imageWidth] = numbers("size");
      this.block = block;
      this.maps = maps;
      this.colours = bytes(block.dataset.colours);
      this.choices = [...block.querySelectorAll("input[data-box]")];
      this.boxes = this.choices.map((choice) => choice.dataset.box.split(",").map(Number));
      this.details = [...block.querySelectorAll(".detail")];
      this.status = block.querySelector(".status");
      this.canvas = document.createElement("canvas");
      this.canvas.width = image.naturalWidth;
      this.canvas.height = image.naturalHeight;
      this.context = this.canvas.getContext("2d", { willReadFrequently: true });
      this.context.drawImage(image, 0, 0);
      const { data } = this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
      this.greys = Float32Array.from({ length: data.length / 4 }, (_, pixel) => {
        const [red, green, blue] = data.subarray(4 * pixel, 4 * pixel + 3);
        return GREY_LIGHTNESS * (0.299 * red + 0.587 * green + 0.114 * blue);
      });
      this.columns = places(this.canvas.width, this.extentX, this.width);
      this.rows = places(this.canvas.height, this.extentY, this.height);
      this.object = 0;
      this.moveTo(...numbers("start").reverse());
      image.replaceWith(this.canvas);
      this.listen(image.alt);
      this.draw();
    }

    // Puts the point at a place in cells.
    moveTo(x, y) {
      this.x = clamp(x, 0, this.extentX - 1e-6);
      this.y = clamp(y, 0, this.extentY - 1e-6);
    }

    get index() {
      return this.boxes.length > 0 ? this.object : Math.floor(this.y) * this.width + Math.floor(this.x);
    }

    get layer() {
      return Number(this.block.querySelector(".layers input:checked").value);
    }

    listen(name) {
      const { canvas, block } = this;
      canvas.setAttribute("aria-label", name);
      canvas.setAttribute("role", "img");
      block.addEventListener("submit", (event) => event.preventDefault());
      block.addEventListener("change", () => {
        const chosen = this.choices.findIndex((choice) => choice.checked);
        if (chosen >= 0) this.object = chosen;
        this.draw();
      });
      const choose = ({ clientX, clientY }) => {
        const frame = canvas.getBoundingClientRect();
        const [x, y] = [(clientX - frame.left) / frame.width, (clientY - frame.top) / frame.height];
        if (this.boxes.length === 0) this.moveTo(x * this.extentX, y * this.extentY);
        else this.chooseAt(x, y);
        this.draw();
      };
      canvas.addEventListener("click", choose);
      if (this.boxes.length > 0) return;
      canvas.addEventListener("pointermove", (event) => {
        if (event.pointerType === "mouse" && event.buttons & 1) choose(event);
      });
      canvas.tabIndex = 0;
      canvas.setAttribute("role", "application"); // arrow keys are for the page, not for a screen reader
      canvas.addEventListener("keydown", (event) => {
        const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
        if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        const [right, down] = steps[event.key];
        this.moveTo(this.x + right, this.y + down);
        this.draw();
      });
    }

    // Chooses the smallest object at a place in shares of the picture.
    chooseAt(x, y) {
      let smallest = Infinity;
      this.boxes.forEach(([x0, y0, x1, y1], object) => {
        const area = (x1 - x0) * (y1 - y0);
        if (x0 <= x && x <= x1 && y0 <= y && y <= y1 && area < smallest) {
          smallest = area;
          this.object = object;
        }
      });
      this.choices[this.object].checked = true;
    }

    draw() {
      this.drawMap();
      if (this.boxes.length > 0) this.drawBoxes();
      else this.drawPoint();
      this.details.forEach((detail, object) => { detail.hidden = object !== this.object; });
      const name = this.block.querySelector(".layers input:checked").dataset.name;
      for (const line of this.block.querySelectorAll("polyline")) {
        line.classList.toggle("chosen", line.dataset.name === name);
      }
    }

    drawMap() {
      const { canvas, columns, rows, width, height, colours, greys } = this;
      const start = (this.index * this.layers + this.layer) * width * height;
      const map = this.maps.subarray(start, start + width * height);
      const pixels = this.context.createImageData(canvas.width, canvas.height);
      const right = width > 1 ? 1 : 0;
      const below = height > 1 ? width : 0;
      let pixel = 0;
      for (const [row, down] of rows) {
        for (const [column, along] of columns) {
          const cell = row * width + column;
          const upper = map[cell] * (1 - along) + map[cell + right] * along;
          const lower = map[cell + below] * (1 - along) + map[cell + below + right] * along;
          const heat = upper * (1 - down) + lower * down;
          const opacity = heat / 255;
          const colour = 3 * Math.round(heat);
          for (let channel = 0; channel < 3; channel++) {
            pixels.data[4 * pixel + channel] = greys[pixel] * (1 - opacity) + colours[colour + channel] * opacity;
          }
          pixels.data[4 * pixel + 3] = 255;
          pixel++;
        }
      }
      this.context.putImageData(pixels, 0, 0);
    }

    get lineWidth() {
      return Math.max(2, Math.sqrt(this.canvas.width * this.canvas.height) / 250);
    }

    drawBoxes() {
      const { context, canvas, lineWidth } = this;
      const size = 7 * lineWidth;
      context.font = `600 ${size}px system-ui, sans-serif`;
      context.textBaseline = "top";
      const order = [...this.boxes.keys()].reverse().filter((object) => object !== this.object);
      for (const object of [...order, this.object]) { // the chosen one on top
        const [x0, y0, x1, y1] = this.boxes[object].map((end, side) => end * (side % 2 ? canvas.height : canvas.width));
        const chosen = object === this.object;
        for (const [width, colour] of [[chosen ? 4 : 2, "#000"], [chosen ? 2 : 0.8, chosen ? "#fff" : "#bbb"]]) {
          context.lineWidth = width * lineWidth;
          context.strokeStyle = colour;
          context.strokeRect(x0, y0, x1 - x0, y1 - y0);
        }
        const text = String(object + 1);
        const label = context.measureText(text).width + size / 2;
        const [left, top] = [clamp(x0, 0, canvas.width - label), clamp(y0, 0, canvas.height - 1.2 * size)];
        context.fillStyle = chosen ? "#fff" : "#000";
        context.fillRect(left, top, label, 1.2 * size);
        context.fillStyle = chosen ? "#000" : "#fff";
        context.fillText(text, left + size / 4, top + 0.15 * size);
      }
    }

    drawPoint() {
      const { context, canvas, lineWidth } = this;
      const [x, y] = [this.x / this.extentX, this.y / this.extentY];
      for (const [radius, colour] of [[4, "#000"], [3, "#fff"]]) {
        context.lineWidth = lineWidth;
        context.strokeStyle = colour;
        context.beginPath();
        context.arc(x * canvas.width, y * canvas.height, radius * lineWidth, 0, 2 * Math.PI);
        context.stroke();
      }
      this.status.textContent = `Point ${Math.floor(x * this.imageWidth)}, ${Math.floor(y * this.imageHeight)}`;
    }
  }

  for (const block of document.querySelectorAll(".heat")) {
    Promise.all([inflate(block.dataset.maps), block.querySelector(".stage img").decode()])
      .then(([maps]) => new Heat(block, maps))
      .catch((error) => {
        block.querySelector(".status").textContent = `The maps cannot be shown in this browser (${error}).`;
        throw error;
      });
  }
}
