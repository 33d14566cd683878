"use strict";

// Sends an image that is dropped, pasted or chosen to /predict, and draws what is found in it.
{
  const LOWEST = 0.05; // score that is asked for; the slider hides what is below its own
  const MOST_PIXELS = 1600; // of the longer side of the picture on the page
  const COLOURS = 8; // --line-0 … --line-7 of the style

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const live = (name) => document.querySelector(`.live[data-name="${name}"]`);
  const sectionOf = (element) => element.closest("section");

  const chooser = make("input", { type: "file", accept: "image/*" });
  const drop = make("label", { class: "drop" }, "Drop an image, or ", make("u", {}, "choose a file"), chooser);
  const token = make("input", { type: "password", autocomplete: "off", "aria-label": "Token" });
  const tokenLine = make("form", { class: "slider", hidden: "" }, make("label", {}, "Token of the server "), token);
  const status = make("p", { class: "status", role: "status" });
  const slider = make("input", { type: "range", min: LOWEST, max: 1, step: 0.01, value: 0.5, "aria-label": "Threshold" });
  const shownThreshold = make("output");
  const sliderLine = make("p", { class: "slider", hidden: "" }, make("span", {}, "Threshold"), slider, shownThreshold);
  const canvas = make("canvas", { hidden: "" });
  const stage = make("div", { class: "stage" }, canvas);
  live("image").append(tokenLine, drop, sliderLine, stage, status);

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
    const scale = Math.min(1, MOST_PIXELS / Math.max(picture.width, picture.height));
    canvas.width = Math.max(1, Math.round(picture.width * scale));
    canvas.height = Math.max(1, Math.round(picture.height * scale));
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    if (prediction === null || prediction.segments) return;
    const style = getComputedStyle(document.documentElement);
    const size = Math.max(11, Math.round(Math.max(canvas.width, canvas.height) / 55));
    context.font = `${size}px system-ui, sans-serif`;
    context.textBaseline = "bottom";
    [...found.entries()].reverse().forEach(([row, { label, name, score, box_xyxy: box }]) => {
      const [x0, y0, x1, y1] = box.map((value) => value * scale);
      const colour = style.getPropertyValue(`--line-${label % COLOURS}`);
      context.strokeStyle = context.fillStyle = colour;
      context.lineWidth = (row === chosen ? 2 : 1) * Math.max(1.5, size / 7);
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
      const text = `${name} ${score.toFixed(2)}`;
      const bottom = Math.max(y0, 1.3 * size);
      context.fillRect(x0, bottom - 1.3 * size, context.measureText(text).width + 0.6 * size, 1.3 * size);
      context.fillStyle = style.getPropertyValue("--ground");
      context.fillText(text, x0 + 0.3 * size, bottom - 0.1 * size);
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
