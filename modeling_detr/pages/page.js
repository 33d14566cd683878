"use strict";

// Tables: the heading of a column sorts by it, then the other way round, then as written.
const collator = new Intl.Collator(undefined, { numeric: true });

function sorted(rows, column, order, isNumber) {
  const sign = order === "ascending" ? 1 : -1;
  const keyed = rows.map((row) => {
    const cell = row.cells[column];
    const key = isNumber ? cell.dataset.value : cell.textContent;
    return { row, key: isNumber && key !== "" ? Number(key) : key };
  });
  const compare = (a, b) => (isNumber ? a - b : collator.compare(a, b));
  keyed.sort((a, b) => (a.key === "") - (b.key === "") || sign * compare(a.key, b.key)); // without a value: last
  return keyed.map(({ row }) => row);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const isNumber = heading.classList.contains("number");
    const [first, second] = isNumber ? ["descending", "ascending"] : ["ascending", "descending"];
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const order = { [first]: second, [second]: null }[heading.getAttribute("aria-sort")];
      for (const other of headings) other.removeAttribute("aria-sort");
      if (order !== null) heading.setAttribute("aria-sort", order ?? first);
      body.replaceChildren(...(order === null ? rows : sorted(rows, column, order ?? first, isNumber)));
    });
  });
}

// Pictures: a click or Enter enlarges one; arrow keys show the others, Escape closes.
const pictures = [...document.querySelectorAll("figure img")];

if (pictures.length > 0) {
  const dialog = document.createElement("dialog");
  const large = document.createElement("img");
  const bar = document.createElement("div");
  const caption = document.createElement("p");
  let shown = 0;

  const show = (number, step = 1) => {
    shown = (number + pictures.length) % pictures.length;
    if (pictures[shown].closest("figure").hidden) return show(shown + step, step);
    large.src = pictures[shown].src;
    large.alt = pictures[shown].alt;
    const heading = pictures[shown].closest("section, details").querySelector("h2, h3").textContent;
    caption.textContent = `${heading}: ${large.alt}`;
    if (!dialog.open) dialog.showModal();
  };
  const button = (text, label, action) => {
    const element = document.createElement("button");
    element.type = "button";
    element.textContent = text;
    element.setAttribute("aria-label", label);
    element.addEventListener("click", action);
    return element;
  };
  bar.append(
    button("←", "Previous picture", () => show(shown - 1, -1)),
    caption,
    button("→", "Next picture", () => show(shown + 1)),
    button("Close", "Close", () => dialog.close()),
  );
  dialog.setAttribute("aria-label", "Enlarged picture");
  dialog.append(large, bar);
  document.body.append(dialog);
  large.addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", ({ key }) => {
    if (key === "ArrowLeft") show(shown - 1, -1);
    if (key === "ArrowRight") show(shown + 1);
  });
  dialog.addEventListener("close", () => pictures[shown].closest("button").focus());
  pictures.forEach((picture, number) => {
    const opener = button("", `Enlarge: ${picture.alt}`, () => show(number));
    picture.replaceWith(opener);
    opener.append(picture);
  });
}

// Pictures with tags: a list for each question; only pictures that fit all answers are shown.
for (const group of document.querySelectorAll(".figures:has([data-tags])")) {
  const figures = [...group.querySelectorAll("figure[data-tags]")];
  const tags = new Map(figures.map((figure) => [figure, JSON.parse(figure.dataset.tags)]));
  const questions = [...new Set([...tags.values()].flatMap(Object.keys))];
  const form = document.createElement("form");
  form.className = "filter";
  const count = document.createElement("output");
  const lists = questions.map((question) => {
    const list = document.createElement("select");
    const answers = [...new Set([...tags.values()].flatMap((tag) => tag[question] ?? []))].sort(collator.compare);
    list.append(new Option("all", ""), ...answers.map((answer) => new Option(answer, answer)));
    const label = document.createElement("label");
    label.append(question, list);
    form.append(label);
    return [question, list];
  });
  const update = () => {
    for (const [figure, tag] of tags) {
      figure.hidden = lists.some(([question, { value }]) => value !== "" && !(tag[question] ?? []).includes(value));
    }
    count.textContent = `${figures.filter((figure) => !figure.hidden).length} of ${figures.length} pictures`;
  };
  form.append(count);
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  group.before(form);
  update();
}
