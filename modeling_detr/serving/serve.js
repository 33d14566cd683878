"use strict";

// Sends an image that is dropped, pasted or chosen to /predict, and draws what is found in it.
{
  const LOWEST = 0.05; // score that is asked for; the slider hides what is below its own
  const [LEAST_PIXELS, MOST_PIXELS] = [640, 1600]; // of the longer side of the picture on the page
  const COLOURS = 8; // --line-0 … --line-7 of the style
  const MASK_PIXELS = 800; // of the longer side of the masks on the page
  const [MASK, CHOSEN_MASK] = [0.45, 0.75]; // opacity

  const chooser = make("input", { type: "file", accept: "image/*" });
  const drop = make("label", { class: "drop" }, "Drop or paste an image, or ", make("u", {}, "choose a file"), chooser);
  const token = make("input", { type: "password", autocomplete: "off", "aria-label": "Token" });
  const tokenLine = make("form", { class: "slider", hidden: "" }, make("label", {}, "Token of the server "), token);
  const status = make("p", { class: "status", role: "status" });
  const slider = make("input", { type: "range", min: LOWEST, max: 1, step: 0.01, value: 0.5, "aria-label": "Threshold" });
  const shownThreshold = make("output");
  const sliderLine = make("p", { class: "slider", hidden: "" }, make("span", {}, "Threshold"), slider, shownThreshold);
  const canvas = make("canvas", { hidden: "" });
  const stage = make("div", { class: "stage" }, canvas);
  live("image").append(tokenLine, drop, sliderLine, status, stage);
  const description = make("a", { href: "/docs" }, "/docs");
  document.querySelector("main").append(make("p", { class: "status" }, "For programs: POST /predict, see ", description));

  let model = null; // what /model answers
  let picture = null; // the image, decoded by the browser; null if it cannot
  let prediction = null;
  let chosen = -1; // the row under the pointer
  let latest = 0; // number of the last request, so that a late answer does not replace a newer one

  async function ask(address, options = {}) {
    const headers = token.value ? { Authorization: `Bearer ${token.value}` } : {};
    const response = await fetch(address, { ...options, headers: { ...headers, ...options.headers } });
    if (response.status === 401) tokenLine.hidden = false;
    const content = await response.json();
    if (!response.ok) throw new Error(content.error.message);
    return content;
  }

  async function askForModel() {
    model = await ask("/model");
    tokenLine.hidden = true;
    status.textContent = "";
    document.title = document.querySelector("h1").textContent = model.model;
  }

  async function show(file) {
    const number = ++latest;
    status.textContent = "Looking …";
    picture = prediction = null;
    draw();
    try {
      if (model === null) await askForModel();
      const bitmap = await createImageBitmap(file).catch(() => null);
      const query = model.task === "panoptic" ? "" : `?threshold=${LOWEST}`;
      const answer = await ask(`/predict${query}`, {
        method: "POST",
        body: file,
        headers: { "Content-Type": file.type || "application/octet-stream" },
      });
      if (number !== latest) return;
      picture = bitmap;
      prediction = answer.predictions[0];
      const { wait, model: computed } = answer.seconds;
      status.textContent = `${prediction.width} × ${prediction.height} pixels, ${(wait + computed).toFixed(2)} s.`;
    } catch (error) {
      if (number !== latest) return;
      status.textContent = error instanceof TypeError ? "The server does not answer." : error.message;
    }
    draw();
  }

  // The runs of COCO's compressed RLE: 5 bits a character, each run as its difference to the one before the last.
  function runsOf(counts) {
    const runs = [];
    for (let position = 0; position < counts.length; ) {
      let [value, shift, code] = [0, 0, 32];
      for (; code & 32; shift += 5) {
        code = counts.charCodeAt(position++) - 48;
        value |= (code & 31) << shift;
      }
      if (code & 16) value |= -1 << shift;
      runs.push(runs.length > 2 ? value + runs.at(-2) : value);
    }
    return runs;
  }

  // A mask, 1 where the object is, by row and in the size of the page's masks; the runs are by column.
  function maskOf({ size: [height, width], counts }) {
    const scale = Math.min(1, MASK_PIXELS / Math.max(width, height));
    const [columns, rows] = [width, height].map((value) => Math.max(1, Math.round(value * scale)));
    const pixels = new Uint8Array(width * height);
    let position = 0;
    runsOf(counts).forEach((run, number) => {
      if (number % 2 === 1) pixels.fill(1, position, position + run);
      position += run;
    });
    const mask = new Uint8Array(columns * rows);
    let [count, sumX, sumY] = [0, 0, 0];
    for (let y = 0; y < rows; y++) {
      const row = Math.floor(((y + 0.5) * height) / rows);
      for (let x = 0; x < columns; x++) {
        if (pixels[Math.floor(((x + 0.5) * width) / columns) * height + row] === 0) continue;
        mask[y * columns + x] = 1;
        count++;
        sumX += x;
        sumY += y;
      }
    }
    return { mask, columns, rows, centre: count > 0 ? [sumX / count / columns, sumY / count / rows] : [0.5, 0.5] };
  }

  const colourOf = (one, row) =>
    getComputedStyle(document.documentElement).getPropertyValue(`--line-${(prediction.segments ? row : one.label) % COLOURS}`);

  // Draws the masks of objects, the first one on top.
  function drawMasks(context, found) {
    const shown = [...found.entries()].reverse().filter(([, one]) => one.segmentation);
    if (shown.length === 0) return;
    for (const [, one] of shown) one.mask ??= maskOf(one.segmentation);
    const { columns, rows } = shown[0][1].mask;
    const layer = make("canvas", { width: columns, height: rows });
    const pen = layer.getContext("2d", { willReadFrequently: true });
    const image = pen.createImageData(columns, rows);
    for (const [row, one] of shown) {
      pen.fillStyle = colourOf(one, row);
      pen.fillRect(0, 0, 1, 1);
      const colour = pen.getImageData(0, 0, 1, 1).data;
      const opacity = 255 * (row === chosen ? CHOSEN_MASK : MASK);
      one.mask.mask.forEach((inside, pixel) => {
        if (inside === 1) image.data.set([colour[0], colour[1], colour[2], opacity], 4 * pixel);
      });
    }
    pen.putImageData(image, 0, 0);
    context.drawImage(layer, 0, 0, canvas.width, canvas.height);
  }

  const objects = () =>
    (prediction?.detections ?? prediction?.segments ?? []).filter(
      (one) => prediction.segments || one.score >= Number(slider.value),
    );

  function draw() {
    shownThreshold.textContent = Number(slider.value).toFixed(2);
    sliderLine.hidden = !prediction?.detections;
    canvas.hidden = picture === null;
    const found = objects();
    if (picture !== null) drawPicture(found);
    showList(found);
  }

  function drawPicture(found) {
    const longer = Math.max(picture.width, picture.height);
    const scale = Math.min(MOST_PIXELS, Math.max(LEAST_PIXELS, longer)) / longer; // small ones are enlarged
    canvas.width = Math.max(1, Math.round(picture.width * scale));
    canvas.height = Math.max(1, Math.round(picture.height * scale));
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    if (prediction === null) return;
    drawMasks(context, found);
    const style = getComputedStyle(document.documentElement);
    const size = Math.max(11, Math.round(Math.max(canvas.width, canvas.height) / 55));
    context.font = `${size}px system-ui, sans-serif`;
    context.textBaseline = "bottom";
    [...found.entries()].reverse().forEach(([row, one]) => {
      context.strokeStyle = context.fillStyle = colourOf(one, row);
      context.lineWidth = (row === chosen ? 2 : 1) * Math.max(1.5, size / 7);
      const text = one.box_xyxy ? `${one.name} ${one.score.toFixed(2)}` : one.name;
      const width = context.measureText(text).width + 0.6 * size;
      let [left, bottom] = [0, 0];
      if (one.box_xyxy) {
        const [x0, y0, x1, y1] = one.box_xyxy.map((value) => value * scale);
        context.strokeRect(x0, y0, x1 - x0, y1 - y0);
        [left, bottom] = [x0, Math.max(y0, 1.3 * size)];
      } else {
        const [x, y] = one.mask.centre;
        [left, bottom] = [x * canvas.width - width / 2, y * canvas.height + 0.65 * size];
      }
      left = Math.max(0, Math.min(left, canvas.width - width));
      context.fillRect(left, bottom - 1.3 * size, width, 1.3 * size);
      context.fillStyle = style.getPropertyValue("--ground");
      context.fillText(text, left + 0.3 * size, bottom - 0.1 * size);
    });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", found.map(({ name }) => name).join(", "));
  }

  function showList(found) {
    const place = live("found");
    sectionOf(place).hidden = prediction === null;
    place.replaceChildren();
    if (prediction === null) return;
    if (found.length === 0) {
      place.replaceChildren(make("p", {}, prediction.segments ? "Nothing." : "Nothing with this score."));
      return;
    }
    const last = prediction.segments ? "Pixels" : "Box";
    const cells = ({ name, score, box_xyxy: box, area }) => [
      make("td", {}, name),
      make("td", { class: "number" }, score.toFixed(3)),
      make("td", { class: "number" }, box ? box.map(Math.round).join(", ") : area.toLocaleString("en")),
    ];
    const rows = found.map((one, row) => {
      const line = make("tr", {}, ...cells(one));
      line.addEventListener("mouseenter", () => choose(row));
      line.addEventListener("mouseleave", () => choose(-1));
      return line;
    });
    const heads = ["Class", "Score", last].map((text, column) =>
      make("th", { scope: "col", class: column > 0 ? "number" : "" }, text),
    );
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
    place.replaceChildren(make("div", { class: "scroll" }, table));
  }

  function choose(row) {
    chosen = row;
    if (picture !== null && prediction !== null) drawPicture(objects());
  }

  chooser.addEventListener("change", () => {
    if (chooser.files.length > 0) show(chooser.files[0]);
    chooser.value = ""; // so that the same file can be chosen again
  });
  slider.addEventListener("input", () => {
    chosen = -1;
    draw();
  });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length > 0) show(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length > 0) show(event.clipboardData.files[0]);
  });

  const askAgain = () => askForModel().catch((error) => {
    status.textContent = error.message;
  });
  token.addEventListener("change", askAgain);
  tokenLine.addEventListener("submit", (event) => event.preventDefault()); // Enter has changed the field already
  draw();
  askAgain();
}
