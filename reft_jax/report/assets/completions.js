// The questions with what was said to them, and the filters and the search over these.

const ROW = {
  moment: 0,
  outcome: 1,
  cause: 2,
  reward: 3,
  value: 4,
  tokens: 5,
  flags: 6,
  text: 7,
  detail: 8,
  functions: 9,
  scored: 10,
};
const OUTCOMES = { correct: "right", no_answer: "no answer", no_gold: "no gold answer" };
const outcomeOf = (row) => browser.outcomes[row[ROW.outcome]];
const momentOf = (row) => browser.moments[row[ROW.moment]];
const isRight = (row) => outcomeOf(row) === "correct";
const filters = { q: "", split: "", run: "", at: "", cause: "", change: "", suspect: "", scored: "", low: "", high: "" };
const PAGE = 10;
let limit = PAGE;

function changes(rows) {
  const found = new Map();
  for (const row of rows) {
    const moment = momentOf(row);
    if (moment.role === "during" || outcomeOf(row) === "no_gold") continue;
    if (!found.has(moment.run)) found.set(moment.run, {});
    found.get(moment.run)[moment.role] = isRight(row);
  }
  const said = new Map();
  for (const [run, pair] of found) {
    if (pair.before === undefined || pair.after === undefined) continue;
    said.set(run, pair.before ? (pair.after ? "both" : "lost") : pair.after ? "gained" : "neither");
  }
  return said;
}

const needle = () => filters.q.trim().toLowerCase();
const inQuestion = ([, id, question, gold]) => `${id}\n${question}\n${gold}`.toLowerCase().includes(needle());

// All that is asked of completions must be true of one of them; the search may be met by the question, too.
function fits(row, asked) {
  const low = filters.low === "" ? -Infinity : +filters.low,
    high = filters.high === "" ? Infinity : +filters.high;
  return (
    (filters.run === "" || momentOf(row).run === +filters.run) &&
    (!filters.at || momentOf(row).role === filters.at) &&
    (!filters.cause || outcomeOf(row) === filters.cause || browser.causes[row[ROW.cause]] === filters.cause) &&
    (!filters.suspect || row[ROW.flags] & 2) &&
    (!filters.scored || row[ROW.scored]) &&
    row[ROW.tokens] >= low &&
    row[ROW.tokens] <= high &&
    (asked || `${browser.texts[row[ROW.text]]}\n${row[ROW.detail]}`.toLowerCase().includes(needle()))
  );
}

function matching() {
  return browser.questions.filter((question) => {
    const [split, , , , rows] = question,
      asked = inQuestion(question);
    if (filters.split && split !== filters.split) return false;
    const own = filters.run === "" ? rows : rows.filter((row) => momentOf(row).run === +filters.run);
    if (filters.change && ![...changes(own).values()].includes(filters.change)) return false;
    return own.some((row) => fits(row, asked));
  });
}

function marked(tag, properties, text) {
  const wanted = needle(),
    element = make(tag, properties),
    lower = text.toLowerCase();
  let from = 0;
  // A letter may have another length in lower case; then nothing is marked.
  while (wanted && lower.length === text.length) {
    const at = lower.indexOf(wanted, from);
    if (at < 0) break;
    element.append(text.slice(from, at), make("mark", null, text.slice(at, at + wanted.length)));
    from = at + wanted.length;
  }
  element.append(text.slice(from));
  return element;
}

function badge(row) {
  const outcome = outcomeOf(row),
    cause = browser.causes[row[ROW.cause]];
  if (outcome === "correct") return make("span", { class: "badge good" }, "✓ right");
  if (outcome === "no_gold") return make("span", { class: "badge plain" }, OUTCOMES.no_gold);
  return make("span", { class: "badge bad" }, `✗ ${OUTCOMES[cause] || cause}`);
}

function completion(row) {
  const flags = row[ROW.flags];
  const facts = [
    row[ROW.value] === "" ? null : `answer ${row[ROW.value]}`,
    `reward ${number(row[ROW.reward])}`,
    `${plural(row[ROW.tokens], "token")}${flags & 1 ? "" : ", cut"}`,
    ...Object.entries(row[ROW.functions] || {}).map(([name, value]) => `${name} ${number(value)}`),
  ];
  return make(
    "div",
    { class: "completion" },
    make(
      "div",
      { class: "meta" },
      make("strong", null, momentOf(row).label),
      badge(row),
      flags & 2 ? make("span", { class: "badge warn" }, "! suspicious") : null,
    ),
    make("div", { class: "meta" }, ...facts.filter(Boolean).map((fact) => make("span", null, fact))),
    row[ROW.detail] ? marked("div", { class: "meta" }, row[ROW.detail]) : null,
    said(row),
  );
}

// Where a text is searched for and found, it is marked; else its tokens are coloured, if they have scores.
function said(row) {
  const text = browser.texts[row[ROW.text]],
    found = needle() && text.toLowerCase().includes(needle());
  return row[ROW.scored] && !found ? tokens(row[ROW.scored]) : marked("pre", null, text);
}

const CHANGES = {
  gained: ["good", "gained"],
  lost: ["bad", "lost"],
  both: ["plain", "right before and after"],
  neither: ["plain", "wrong before and after"],
};

function card(whole) {
  const [split, id, question, gold, rows] = whole,
    changed = changes(rows),
    parts = [],
    asked = inQuestion(whole);
  runs.forEach((run, place) => {
    const own = rows.filter((row) => momentOf(row).run === place);
    if (!own.length) return;
    let shown = own.filter((row) => momentOf(row).role !== "during");
    if (!shown.length) shown = own.length > 2 ? [own[0], own[own.length - 1]] : own;
    const rest = own.filter((row) => !shown.includes(row));
    if (several) parts.push(make("h4", null, run.name));
    parts.push(make("div", { class: "said" }, ...shown.map(completion)));
    if (rest.length) {
      const more = make(
        "details",
        null,
        make("summary", null, `on the way: ${rest.map((row) => (isRight(row) ? "✓" : "✗")).join(" ")}`),
      );
      const fill = () => {
        if (more.childElementCount === 1) more.append(make("div", { class: "said" }, ...rest.map(completion)));
      };
      more.addEventListener("toggle", fill);
      if (!shown.some((row) => fits(row, asked)) && rest.some((row) => fits(row, asked))) {
        more.open = true;
        fill();
      }
      parts.push(more);
    }
  });
  return make(
    "article",
    { class: "question" },
    make(
      "div",
      { class: "meta" },
      make("span", null, split),
      marked("span", null, id),
      ...[...changed].map(([run, kind]) =>
        make(
          "span",
          { class: `badge ${CHANGES[kind][0]}` },
          `${several ? `${runs[run].name}: ` : ""}${CHANGES[kind][1]}`,
        ),
      ),
    ),
    marked("p", null, question),
    gold === "" ? null : marked("p", { class: "soft" }, `Gold answer: ${gold}`),
    ...parts,
  );
}

function list() {
  const found = matching(),
    holder = document.getElementById("question-list");
  document.getElementById("found").textContent =
    `${count(found.length)} of ${plural(browser.questions.length, "question")} on this page match.`;
  holder.replaceChildren(...found.slice(0, limit).map(card));
  if (found.length > limit) {
    const more = make(
      "button",
      {
        type: "button",
        onclick: () => {
          const before = holder.querySelectorAll("article").length;
          limit += PAGE;
          list();
          const fresh = holder.querySelectorAll("article")[before];
          fresh.setAttribute("tabindex", "-1");
          fresh.focus();
        },
      },
      `Show ${Math.min(PAGE, found.length - limit)} more`,
    );
    holder.append(more);
  }
}

function keep() {
  const given = Object.entries(filters).filter(([, value]) => value !== "");
  try {
    history.replaceState(null, "", given.length ? `#?${new URLSearchParams(given)}` : "#completions");
  } catch {
    /* where a browser forbids it, filters are not kept over a reload */
  }
}

function setFilters(values) {
  Object.assign(filters, values);
  for (const [name, value] of Object.entries(filters)) {
    const field = document.querySelector(`.filters [name=${name}]`);
    if (field && field.type === "checkbox") field.checked = value !== "";
    else if (field) field.value = value;
  }
  limit = PAGE;
  list();
}

function completionSection() {
  const labelled = (label, field, kind) => make("label", { class: kind }, label, field);
  const choice = (name, options) =>
    make("select", { name }, ...options.map(([value, text]) => make("option", { value }, text)));
  const causes = [
    ...new Set(
      browser.questions.flatMap(([, , , , rows]) =>
        rows.flatMap((row) => [outcomeOf(row), browser.causes[row[ROW.cause]]]),
      ),
    ),
  ]
    .filter(Boolean)
    .sort();
  const form = make(
    "form",
    { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
    labelled("Search in questions and completions", make("input", { type: "search", name: "q" }), "wide"),
    labelled("Set", choice("split", [["", "all"], ...browser.shown.map((own) => [own.split, own.split])])),
    several
      ? labelled("Run", choice("run", [["", "all"], ...runs.map((run, place) => [String(place), run.name])]))
      : null,
    labelled("Outcome", choice("cause", [["", "any"], ...causes.map((cause) => [cause, OUTCOMES[cause] || cause])])),
    labelled(
      "Asked",
      choice("at", [
        ["", "at any time"],
        ["before", "at the warm-up"],
        ["during", "on the way"],
        ["after", "at the end"],
      ]),
    ),
    labelled(
      "Against the warm-up",
      choice("change", [
        ["", "any"],
        ["gained", "gained"],
        ["lost", "lost"],
        ["both", "right before and after"],
        ["neither", "wrong before and after"],
      ]),
    ),
    labelled(
      "Length, tokens",
      make(
        "span",
        { class: "pair" },
        make("input", { type: "number", name: "low", min: 0, placeholder: "from", "aria-label": "tokens, from" }),
        make("input", { type: "number", name: "high", min: 0, placeholder: "to", "aria-label": "tokens, to" }),
      ),
    ),
    make("label", { class: "check" }, make("input", { type: "checkbox", name: "suspect" }), "suspicious only"),
    hasScores
      ? make("label", { class: "check" }, make("input", { type: "checkbox", name: "scored" }), "with coloured tokens only")
      : null,
    make(
      "div",
      null,
      make(
        "button",
        {
          type: "button",
          onclick: () => {
            setFilters(Object.fromEntries(Object.keys(filters).map((name) => [name, ""])));
            keep();
          },
        },
        "Clear",
      ),
    ),
  );
  form.addEventListener("input", (event) => {
    const field = event.target;
    filters[field.name] = field.type === "checkbox" ? (field.checked ? "1" : "") : field.value;
    limit = PAGE;
    list();
    keep();
  });
  const told = browser.shown.map((own) =>
    own.questions < own.of_questions
      ? `${own.split}: a sample of ${count(own.questions)} of ${plural(own.of_questions, "question")} (${count(own.completions)} of ${plural(own.of_completions, "completion")}), drawn by a hash of the question, examples of failures first; all else on this page counts all of them`
      : `${own.split}: all ${plural(own.questions, "question")}, ${plural(own.completions, "completion")}`,
  );
  const left = runs
    .filter((run) => run.left_out)
    .map(
      (run) =>
        `${several ? `${run.name}: ` : ""}${plural(run.left_out, "evaluation")} on dev ${run.left_out === 1 ? "is" : "are"} in the curves and not here`,
    );
  section(
    "completions",
    "Completions",
    "Completions",
    make("p", null, `The same question at the warm-up, on the way and at the end. ${[...told, ...left].join(". ")}.`),
    form,
    hasScores ? tokenChoice() : null,
    make("p", { id: "found", "aria-live": "polite" }),
    make("div", { id: "question-list" }),
  );
  const hash = location.hash.startsWith("#?") ? Object.fromEntries(new URLSearchParams(location.hash.slice(2))) : {};
  setFilters(Object.fromEntries(Object.entries(hash).filter(([name]) => name in filters)));
}
