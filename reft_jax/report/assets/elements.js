// The data, and what all parts of the page are made of. Every text of a run is set as text, never as HTML: completions
// may hold anything. The scripts of this folder are one on the page, in the order of `SCRIPTS` in page.py.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs,
  several = runs.length > 1,
  browser = data.browser;

function make(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const none = "–";
const count = (value) => (typeof value === "number" ? Math.round(value).toLocaleString("en") : none);
const percent = (value, digits = 1) => (typeof value === "number" ? (100 * value).toFixed(digits) : none);
const plural = (n, word, many = `${word}s`) => `${count(n)} ${n === 1 ? word : many}`;

function number(value) {
  if (typeof value !== "number") return value === null || value === undefined ? none : String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return size < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(size >= 1000 ? 4 : 3));
}

function duration(seconds) {
  if (typeof seconds !== "number") return none;
  if (seconds < 59.5) return `${seconds < 9.95 ? seconds.toFixed(1) : seconds.toFixed(0)} s`;
  const pair = (whole, big, small) =>
    `${Math.floor(whole / 60)} ${big} ${String(whole % 60).padStart(2, "0")} ${small}`;
  return seconds < 3599.5 ? pair(Math.round(seconds), "min", "s") : pair(Math.round(seconds / 60), "h", "min");
}

const probability = (p) => (typeof p !== "number" ? none : p < 0.001 ? "< 0.001" : p.toFixed(3));

// A column is [heading, "left" or "wrap" or ""]; a row is its cells, or {cells, kind}; a first cell of null is that of
// the row above.
function table(caption, columns, rows) {
  const head = make(
    "tr",
    null,
    ...columns.map(([heading, kind]) => make("th", { scope: "col", class: kind && "left" }, heading)),
  );
  const whole = rows.map((row) => (Array.isArray(row) ? { cells: row } : row));
  const spanned = (at) => {
    let end = at + 1;
    while (end < whole.length && whole[end].cells[0] === null) end++;
    return end - at > 1 ? end - at : null;
  };
  const body = whole.map(({ cells, kind }, at) =>
    make(
      "tr",
      { class: kind },
      ...cells.map((cell, place) =>
        place === 0 && cell === null
          ? null
          : make(
              place ? "td" : "th",
              { scope: place ? null : "row", rowspan: place ? null : spanned(at), class: columns[place][1] || null },
              cell,
            ),
      ),
    ),
  );
  // The caption stands outside, for on a narrow screen the table scrolls.
  return make(
    "div",
    { class: "table" },
    make("p", { class: "soft" }, caption),
    make(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
      make("table", { "aria-label": caption }, make("thead", null, head), make("tbody", null, ...body)),
    ),
  );
}

const sections = [];
function section(id, short, title, ...children) {
  sections.push([id, short]);
  document
    .querySelector("main")
    .append(
      make("section", { id, "aria-labelledby": `${id}-title` }, make("h2", { id: `${id}-title` }, title), ...children),
    );
}
