// Completions token by token: coloured by value, advantage or KL, with the numbers below on hover and on arrow keys.

const SCORES = {
  advantage: ["advantage", "as the update took it: above 0 a token was made likelier, below 0 less likely"],
  value: ["value", "the reward that the critic expected before the token"],
  log_ratio: ["KL", "log-probability less that of the reference, in nats; its sum over a response is the response's KL"],
};
const LEVELS = 4,
  FAINT = 0.2; // of a level: what is less has no colour
const scoresOf = (name) =>
  browser.questions.flatMap(([, , , , rows]) =>
    rows.flatMap((row) => (row[ROW.scored] && row[ROW.scored][2][name] ? row[ROW.scored][2][name].filter((x) => x !== null) : [])),
  );
// The size at which a colour is full: one token of twenty is beyond it.
const scales = {};
for (const name of Object.keys(SCORES)) {
  const sizes = scoresOf(name)
    .map(Math.abs)
    .sort((a, b) => a - b);
  if (sizes.length) scales[name] = sizes[Math.floor(0.95 * (sizes.length - 1))] || sizes[sizes.length - 1] || 1;
}
const hasScores = Object.keys(scales).length > 0;
let coloured = Object.keys(scales)[0];

// From -LEVELS to LEVELS; sign and size are seen without colour too, by the line below a token.
function level(name, value) {
  if (value === undefined || value === null) return 0;
  const part = (LEVELS * Math.abs(value)) / scales[name];
  return part < FAINT ? 0 : Math.sign(value) * Math.min(LEVELS, Math.floor(part) + 1);
}
const levelClass = (place) => (place ? `${place < 0 ? "minus" : "plus"}${Math.abs(place)}` : "");
const signed = (value) => (typeof value === "number" ? number(value).replace("-", "\u2212") : none);

// A part of a character, and the end of a line, would not be seen.
const visible = (text, newline = "\u21b5") => text.replace(/\n/g, newline) || "\u25cc";

function told(scores, texts, place) {
  const own = Object.keys(SCORES).filter((name) => scores[name]);
  return `Token ${place + 1} of ${texts.length}, \u201c${visible(texts[place])}\u201d: ${own.map((name) => `${SCORES[name][0]} ${signed(scores[name][place])}`).join(", ")}`;
}

function paint(box) {
  const row = box.scored[2][coloured] || [];
  [...box.querySelectorAll(".token")].forEach((token, place) => {
    token.className = `token ${levelClass(level(coloured, row[place]))}${place === box.at ? " at" : ""}`;
  });
}

function tokens(scored) {
  const [head, texts, scores] = scored;
  const box = make("pre", {
    class: "tokens",
    tabindex: 0,
    role: "group",
    "aria-label": "Tokens; arrow keys read the numbers of each",
  });
  box.append(
    head,
    ...texts.map((text, place) =>
      make("span", { class: "token", title: told(scores, texts, place) }, visible(text, "\u21b5\n")),
    ),
  );
  box.scored = scored;
  box.at = null;
  const numbers = make("p", { class: "meta numbers", "aria-live": "polite" }, "Point at a token, or use the arrow keys.");
  const all = [...box.querySelectorAll(".token")];
  const show = (place) => {
    if (box.at !== null) all[box.at].classList.remove("at");
    box.at = place;
    all[place].classList.add("at");
    numbers.textContent = told(scores, texts, place);
  };
  box.addEventListener("mouseover", (event) => {
    const place = all.indexOf(event.target);
    if (place >= 0) show(place);
  });
  box.addEventListener("click", (event) => {
    const place = all.indexOf(event.target);
    if (place >= 0) show(place);
  });
  box.addEventListener("keydown", (event) => {
    const last = all.length - 1,
      at = box.at;
    const to = {
      ArrowRight: at === null ? 0 : Math.min(last, at + 1),
      ArrowLeft: at === null ? last : Math.max(0, at - 1),
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  });
  paint(box);
  return make("div", null, box, numbers);
}

function legend() {
  const scale = scales[coloured],
    places = Array.from({ length: 2 * LEVELS + 1 }, (_, place) => place - LEVELS);
  const begins = (place) => signed(+((scale / LEVELS) * Math.sign(place) * Math.max(Math.abs(place) - 1, FAINT)).toPrecision(2));
  return [
    make("span", { class: "soft" }, `${SCORES[coloured][1]}. Each colour begins at:`),
    make("span", { class: "legend" }, ...places.map((place) => make("span", { class: `token ${levelClass(place)}` }, place ? begins(place) : "0"))),
  ];
}

function tokenChoice() {
  const explained = make("p", { class: "scale", "aria-live": "polite" }, ...legend());
  const choice = (name) =>
    make(
      "label",
      null,
      make("input", {
        type: "radio",
        name: "token-colour",
        value: name,
        checked: name === coloured,
        onchange: () => {
          coloured = name;
          explained.replaceChildren(...legend());
          document.querySelectorAll(".tokens").forEach(paint);
        },
      }),
      ` ${SCORES[name][0]}`,
    );
  return make(
    "div",
    { class: "token-choice" },
    make("fieldset", null, make("legend", null, "Colour of tokens, where a rollout has their scores"), ...Object.keys(scales).map(choice)),
    explained,
  );
}
