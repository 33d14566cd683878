"use strict";

// Keeps the page of a run up to date: asks for its view every few seconds, and shows what has changed.
{
  const SECONDS = 2;
  const LEGEND = "Left: predicted, right: ground truth. Solid: found; dashed or striped: false or missed.";

  const header = document.querySelector("header");
  const title = document.title;
  const line = make("p", { class: "state", role: "status" }, make("i"), make("span", {}, "Loading …"));
  const bar = make("progress", { max: 1, "aria-label": "Steps taken", hidden: "" });
  const highlights = make("ul", { class: "highlights" });
  header.querySelector("h1").after(line, bar, highlights);

  function showHead({ state, line: text, share, highlights: numbers }) {
    line.dataset.state = state;
    line.querySelector("span").textContent = text;
    bar.hidden = share === null;
    if (share !== null) bar.value = share;
    highlights.replaceChildren(...numbers.map(([value, name]) => make("li", {}, make("strong", {}, value), name)));
    highlights.hidden = numbers.length === 0;
    const percent = share === null ? "" : `${Math.floor(100 * share)}% `;
    document.title = state === "training" ? `${percent}${title}` : `${state} ${percent}${title}`;
  }

  function showWarnings({ warnings }) {
    const list = live("warnings");
    sectionOf(list).hidden = warnings.length === 0;
    list.replaceChildren(
      make("ul", { class: "warnings" }, ...warnings.map(([where, text]) => make("li", {}, make("small", {}, where), text))),
    );
  }

  function showText(name, text) {
    const place = live(name);
    sectionOf(place).hidden = text === "";
    if (place.textContent !== text) place.replaceChildren(make("pre", {}, text));
  }

  // The pictures of one evaluation; a slider chooses which. It follows the run until a reader moves it.
  class Pictures {
    constructor(place) {
      this.place = place;
      this.follows = true;
      this.shown = 0;
      this.range = make("input", { type: "range", min: 0, step: 1, "aria-label": "Evaluation" });
      this.caption = make("output");
      this.slider = make("p", { class: "slider" }, this.range, this.caption);
      this.grid = make("div", { class: "figures wide" });
      place.append(make("p", {}, LEGEND), this.slider, this.grid);
      this.range.addEventListener("input", () => {
        this.shown = Number(this.range.value);
        this.follows = this.shown === this.all.length - 1;
        this.draw();
      });
    }

    update(all) {
      sectionOf(this.place).hidden = all.length === 0;
      if (all.length === 0) return;
      const key = this.all?.[this.shown]?.key;
      this.all = all;
      const same = all.findIndex((pictures) => pictures.key === key);
      this.shown = this.follows || same < 0 ? all.length - 1 : same;
      this.range.max = all.length - 1;
      this.range.value = this.shown;
      this.range.hidden = all.length < 2;
      this.draw();
    }

    draw() {
      const { key, title: text, names, version } = this.all[this.shown];
      this.caption.textContent = text;
      while (this.grid.children.length > names.length) this.grid.lastElementChild.remove();
      names.forEach((name, number) => {
        const address = `/pictures/${key}/${number}?${version}`;
        const figure = this.grid.children[number] ?? this.grid.appendChild(
          make("figure", {}, make("a", { target: "_blank", rel: "noopener" }, make("img", {})), make("figcaption")),
        );
        const image = figure.querySelector("img");
        if (image.getAttribute("src") !== address) image.src = address; // only what has changed is loaded
        image.alt = name;
        figure.querySelector("a").href = address;
        figure.querySelector("figcaption").textContent = name;
      });
    }
  }

  const pictures = new Pictures(live("pictures"));
  const curves = document.querySelector(".curves").curves;
  let version = null;

  function show(view) {
    showHead(view);
    showWarnings(view);
    showText("plan", view.plan);
    showText("recipe", view.recipe);
    pictures.update(view.pictures);
    curves.update(view.curves);
  }

  async function update() {
    try {
      const response = await fetch("/status.json", { cache: "no-cache" });
      const newest = response.headers.get("ETag");
      if (response.ok && newest !== version) {
        const view = await response.json();
        show(view);
        version = newest;
      }
    } catch {
      version = null;
      line.dataset.state = "lost";
      line.querySelector("span").textContent = "detr watch has ended; this page shows what it last knew.";
    }
    setTimeout(update, 1000 * SECONDS);
  }

  for (const name of ["warnings", "pictures", "plan", "recipe"]) sectionOf(live(name)).hidden = true;
  update();
}
