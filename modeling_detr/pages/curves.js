"use strict";

// Training curves: hover or the arrow keys show values, chips switch runs off and choose the axis.
{
  const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [400, 220, 48, 8, 8, 30]; // of a chart, and of its margins
  const [RIGHT_EDGE, BOTTOM_EDGE] = [WIDTH - RIGHT, HEIGHT - BOTTOM];
  const FEW = 40; // points up to which each has a marker
  const COLOURS = 8;
  const AXIS_LABELS = { steps: "step", images: "images", minutes: "minutes", epochs: "epoch" };

  const draw = (name, attributes = {}, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };

  // As `smoothed` of visualization/curve_series.py.
  function smooth(values, weight) {
    let [average, remaining] = [0, 1];
    return values.map((value) => {
      if (value === null) return null;
      average = weight * average + (1 - weight) * value;
      remaining *= weight;
      return average / (1 - remaining);
    });
  }

  const format = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    if (Number.isInteger(value)) return value.toLocaleString("en");
    return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
  };

  // Round numbers from `low` to `high`, about `count` of them; powers of ten (and 2, 5 where there are few) if `isLog`.
  function ticks(low, high, count, isLog) {
    if (isLog) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
        for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
      }
      const inside = found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
      const powers = inside.filter((value) => Math.abs(Math.log10(value) % 1) < 1e-9);
      const chosen = powers.length > 2 ? powers : inside;
      const every = Math.ceil(chosen.length / 6);
      return chosen.filter((_, index) => index % every === 0);
    }
    const rough = (high - low) / count;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = unit * ([1, 2, 5, 10].find((factor) => factor * unit >= rough * 0.999) ?? 10);
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, index) => {
      const value = (first + index) * step;
      return Number(value.toPrecision(12));
    });
  }

  const quantile = (ordered, share) => ordered[Math.round(share * (ordered.length - 1))];

  // The range of a chart: all of the smoothed lines, and of the raw ones what is not an outlier.
  function rangeOf(lines, isLog) {
    const whole = lines.filter((line) => !line.isRaw).flatMap((line) => line.values.filter((value) => value !== null));
    const raw = lines.filter((line) => line.isRaw).flatMap((line) => {
      const ordered = line.values.filter((value) => value !== null).sort((a, b) => a - b);
      return ordered.length > 0 ? [quantile(ordered, 0.02), quantile(ordered, 0.98)] : [];
    });
    const all = [...whole, ...raw].filter((value) => !isLog || value > 0);
    if (all.length === 0) return isLog ? [0.1, 1] : [0, 1];
    let low = all.reduce((a, b) => Math.min(a, b));
    let high = all.reduce((a, b) => Math.max(a, b));
    if (isLog) return low === high ? [low / 2, high * 2] : [low, high];
    if (low === high) [low, high] = low === 0 ? [0, 1] : [low - 0.1 * Math.abs(low), high + 0.1 * Math.abs(high)];
    const margin = 0.04 * (high - low);
    const [floor, ceiling] = [low - margin, high + margin];
    return [low >= 0 && (floor < 0 || low < 0.25 * high) ? 0 : floor, ceiling];
  }

  // The index of the place in ascending `places` that is nearest to `place`.
  function nearest(places, place) {
    let [low, high] = [0, places.length - 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (places[middle] < place) low = middle;
      else high = middle;
    }
    return Math.abs(places[low] - place) <= Math.abs(places[high] - place) ? low : high;
  }

  class Panel {
    constructor(block, { title, names }) {
      this.block = block;
      this.title = title;
      this.names = names;
      this.svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title, tabindex: 0 });
      this.tip = make("div", { class: "tip", hidden: "" });
      this.element = make("div", { class: "panel" }, make("p", {}, make("strong", {}, title)), this.svg, this.tip);
      for (const kind of ["pointermove", "pointerdown"]) {
        this.svg.addEventListener(kind, ({ clientX }) => {
          const frame = this.svg.getBoundingClientRect();
          this.show(((clientX - frame.left) / frame.width) * WIDTH);
        });
      }
      this.svg.addEventListener("pointerleave", ({ pointerType }) => {
        if (pointerType === "mouse") this.hide(); // a finger has left to let its owner read
      });
      this.svg.addEventListener("blur", () => this.hide());
      this.svg.addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (step === undefined || event.ctrlKey || event.metaKey || event.altKey || this.lines.length === 0) return;
        event.preventDefault();
        const { places } = this.lines[0];
        const index = this.at === undefined ? places.length - 1 : nearest(places, this.at) + step;
        this.showAt(places[Math.min(Math.max(index, 0), places.length - 1)]);
      });
    }

    // The lines to draw: of a smoothed value the raw one first.
    collect() {
      const { axis, smoothing, isLog } = this.block;
      this.lines = [];
      this.block.data.runs.forEach((run, number) => {
        if (this.block.off.has(run.name)) return;
        this.names.forEach((name, dash) => {
          const table = run.tables.find((candidate) => name in candidate.y);
          if (table === undefined || !(axis in table.x)) return;
          const places = table.x[axis];
          const values = isLog ? table.y[name].map((value) => (value > 0 ? value : null)) : table.y[name];
          const line = { run, number, name, dash, places, values, isRaw: false };
          if (smoothing > 0 && values.length > 2 && table.smoothed.includes(name)) {
            this.lines.push({ ...line, isRaw: true });
            line.raw = values;
            line.values = smooth(values, smoothing);
          }
          this.lines.push(line);
        });
      });
    }

    draw() {
      this.collect();
      const { svg, block } = this;
      this.left = 0;
      this.right = block.right;
      [this.low, this.high] = rangeOf(this.lines, block.isLog);
      svg.replaceChildren();
      for (const value of ticks(this.low, this.high, 4, block.isLog)) {
        const y = this.y(value);
        svg.append(
          draw("line", { x1: LEFT, x2: RIGHT_EDGE, y1: y, y2: y }),
          draw("text", { x: LEFT - 5, y: y + 4, "text-anchor": "end" }, format(value)),
        );
      }
      for (const value of ticks(this.left, this.right, 5, false)) {
        svg.append(draw("text", { x: this.x(value), y: BOTTOM_EDGE + 14, "text-anchor": "middle" }, format(value)));
      }
      const label = { x: (LEFT + RIGHT_EDGE) / 2, y: HEIGHT - 3, "text-anchor": "middle" };
      svg.append(draw("text", label, AXIS_LABELS[block.axis]));
      const inside = draw("svg", { x: LEFT, y: TOP, width: RIGHT_EDGE - LEFT, height: BOTTOM_EDGE - TOP });
      inside.setAttribute("viewBox", `${LEFT} ${TOP} ${RIGHT_EDGE - LEFT} ${BOTTOM_EDGE - TOP}`);
      for (const line of this.lines) this.drawLine(inside, line);
      svg.append(inside);
      this.marks = draw("g", { class: "marks" });
      svg.append(this.marks);
      if (this.at !== undefined) this.showAt(this.at);
    }

    x(value) {
      return LEFT + ((value - this.left) / (this.right - this.left)) * (RIGHT_EDGE - LEFT);
    }

    y(value) {
      const scale = this.block.isLog ? Math.log : (number) => number;
      const share = (scale(value) - scale(this.low)) / (scale(this.high) - scale(this.low));
      return BOTTOM_EDGE - share * (BOTTOM_EDGE - TOP);
    }

    drawLine(inside, { number, dash, places, values, isRaw }) {
      const look = `run-${number % COLOURS}${dash ? " dashed" : ""}${isRaw ? " raw" : ""}`;
      const points = [];
      values.forEach((value, index) => {
        if (value !== null) points.push([this.x(places[index]).toFixed(1), this.y(value).toFixed(1)]);
      });
      inside.append(draw("polyline", { class: look, points: points.map((point) => point.join()).join(" ") }));
      if (isRaw || points.length >= FEW) return;
      for (const [cx, cy] of points) inside.append(draw("circle", { class: look, cx, cy, r: 2.2 }));
    }

    show(x) {
      const share = (x - LEFT) / (RIGHT_EDGE - LEFT);
      this.showAt(this.left + Math.min(Math.max(share, 0), 1) * (this.right - this.left));
    }

    // Shows the values nearest to a place on the axis.
    showAt(place) {
      this.at = place;
      this.marks.replaceChildren();
      const rows = [];
      let shown;
      for (const line of this.lines) {
        if (line.isRaw || line.places.length === 0) continue;
        const index = nearest(line.places, place);
        const value = line.values[index];
        if (value === null) continue;
        shown ??= line.places[index];
        const look = `run-${line.number % COLOURS}`;
        this.marks.append(
          draw("circle", { class: look, cx: this.x(line.places[index]), cy: this.y(value), r: 3.2 }),
        );
        const text = line.raw === undefined ? format(value) : `${format(value)} (${format(line.raw[index])})`;
        const name = this.block.data.runs.length > 1 ? `${line.run.name} ` : "";
        rows.push([look, `${name}${this.names.length > 1 ? line.name : ""}`.trim(), text]);
      }
      this.tip.hidden = rows.length === 0;
      if (rows.length === 0) return;
      const x = this.x(shown);
      this.marks.prepend(draw("line", { x1: x, x2: x, y1: TOP, y2: BOTTOM_EDGE }));
      this.tip.replaceChildren(
        make("small", {}, `${AXIS_LABELS[this.block.axis]} ${format(shown)}`),
        ...rows.map(([look, name, text]) => make("div", {}, make("i", { class: look }), make("b", {}, text), ` ${name}`)),
      );
      const isLeft = x > WIDTH / 2;
      this.tip.style.left = isLeft ? "auto" : `${(100 * x) / WIDTH + 2}%`;
      this.tip.style.right = isLeft ? `${100 - (100 * x) / WIDTH + 2}%` : "auto";
    }

    hide() {
      this.at = undefined;
      this.tip.hidden = true;
      this.marks.replaceChildren();
    }
  }

  class CurveBlock {
    constructor(element) {
      this.element = element;
      this.off = new Set(); // names of the runs that are switched off
      this.isLog = false;
      this.element.curves = this; // for the script of a live page
      if (element.dataset.curves !== undefined) this.update(JSON.parse(element.dataset.curves));
    }

    // Shows new data; what the reader has chosen stays.
    update(data) {
      const layout = JSON.stringify([data.panels, data.axes, data.runs.map(({ name }) => name)]);
      this.data = data;
      this.smoothing ??= data.smoothing;
      if (!data.axes.includes(this.axis)) this.axis = data.axis;
      if (layout !== this.layout) this.build();
      this.layout = layout;
      this.draw();
    }

    build() {
      if (this.data.panels.length === 0) {
        this.panels = [];
        this.element.replaceChildren(make("p", {}, "Nothing has been logged yet."));
        return;
      }
      const isOpen = this.element.querySelector("details")?.open ?? false;
      const { panels } = this.data;
      this.panels = panels.map((panel) => new Panel(this, panel));
      const shown = this.panels.filter((_, index) => !panels[index].folded);
      const folded = this.panels.filter((_, index) => panels[index].folded);
      const content = [this.controls(), make("div", { class: "panels" }, ...shown.map(({ element }) => element))];
      if (folded.length > 0) {
        const heading = make("summary", {}, make("h3", {}, "All other loss terms"));
        const inner = make("div", { class: "panels" }, ...folded.map(({ element }) => element));
        const details = make("details", {}, heading, inner);
        details.open = isOpen;
        details.addEventListener("toggle", () => this.draw());
        content.push(details);
      }
      this.element.replaceChildren(...content);
    }

    controls() {
      const form = make("form");
      form.addEventListener("submit", (event) => event.preventDefault());
      const group = (title, ...children) => make("fieldset", {}, make("legend", {}, title), ...children);
      const chip = (type, name, text, isChecked, change, swatch = "") => {
        const input = make("input", { type, name });
        input.checked = isChecked;
        input.addEventListener("change", () => {
          change(input.checked);
          this.draw();
        });
        return make("label", {}, input, swatch, text);
      };
      const { axes, runs } = this.data;
      if (runs.length > 1) {
        const chips = runs.map(({ name }, number) => {
          const swatch = make("i", { class: `run-${number % COLOURS}` });
          const change = (isOn) => this.off[isOn ? "delete" : "add"](name);
          return chip("checkbox", "run", name, !this.off.has(name), change, swatch);
        });
        form.append(group("Runs", ...chips));
      }
      form.append(
        group("Over", ...axes.map((axis) => chip("radio", "axis", axis, axis === this.axis, () => { this.axis = axis; }))),
      );
      const range = make("input", { type: "range", min: 0, max: 0.99, step: 0.01, "aria-label": "Smoothing" });
      const output = make("output");
      const show = () => { output.textContent = this.smoothing > 0 ? this.smoothing.toFixed(2) : "off"; };
      range.value = this.smoothing;
      show();
      range.addEventListener("input", () => {
        this.smoothing = Number(range.value);
        show();
        this.draw();
      });
      form.append(group("Smoothing", make("span", { class: "range" }, range, output)));
      form.append(
        group("Scale", chip("checkbox", "log", "logarithmic", this.isLog, (isOn) => { this.isLog = isOn; })),
      );
      return form;
    }

    draw() {
      const isOpen = this.element.querySelector("details")?.open ?? false;
      const shown = this.data.runs.filter(({ name }) => !this.off.has(name));
      const places = shown.flatMap(({ tables }) => tables.map(({ x }) => x[this.axis]?.at(-1) ?? 0));
      this.right = Math.max(0, ...places) || 1; // the same for all panels, so that they can be compared
      this.panels.forEach((panel, index) => {
        if (isOpen || !this.data.panels[index].folded) panel.draw();
      });
    }
  }

  for (const element of document.querySelectorAll(".curves")) new CurveBlock(element);
}
