// Renders the report's data. Every text of a run is set as text, never as HTML: completions may hold anything.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const runs = data.runs, several = runs.length > 1, browser = data.browser;

  // ---- Elements and numbers

  function make(tag, properties, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties || {})) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
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
    const pair = (whole, big, small) => `${Math.floor(whole / 60)} ${big} ${String(whole % 60).padStart(2, "0")} ${small}`;
    return seconds < 3599.5 ? pair(Math.round(seconds), "min", "s") : pair(Math.round(seconds / 60), "h", "min");
  }

  const probability = (p) => (typeof p !== "number" ? none : p < 0.001 ? "< 0.001" : p.toFixed(3));

  // ---- Tables

  // A column is [heading, "left" or "wrap" or ""]; a row is its cells, or {cells, kind}; a first cell of null is that of
  // the row above.
  function table(caption, columns, rows) {
    const head = make("tr", null, ...columns.map(([heading, kind]) => make("th", { scope: "col", class: kind && "left" }, heading)));
    const whole = rows.map((row) => (Array.isArray(row) ? { cells: row } : row));
    const spanned = (at) => {
      let end = at + 1;
      while (end < whole.length && whole[end].cells[0] === null) end++;
      return end - at > 1 ? end - at : null;
    };
    const body = whole.map(({ cells, kind }, at) => make("tr", { class: kind }, ...cells.map((cell, place) => (place === 0 && cell === null ? null :
      make(place ? "td" : "th", { scope: place ? null : "row", rowspan: place ? null : spanned(at), class: columns[place][1] || null }, cell)))));
    // The caption stands outside, for on a narrow screen the table scrolls.
    return make("div", { class: "table" }, make("p", { class: "soft" }, caption),
      make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
        make("table", { "aria-label": caption }, make("thead", null, head), make("tbody", null, ...body))));
  }

  const sections = [];
  function section(id, short, title, ...children) {
    sections.push([id, short]);
    document.querySelector("main").append(make("section", { id, "aria-labelledby": `${id}-title` }, make("h2", { id: `${id}-title` }, title), ...children));
  }

  // ---- Final table

  function headline(run) {
    const rows = run.results, last = rows[rows.length - 1];
    if (!last || typeof last.accuracy !== "number") return null;
    let text = `${last.model} answers ${percent(last.accuracy)} % of the ${last.split} questions right`;
    if (last.pairing && typeof rows[0].accuracy === "number") {
      const gain = 100 * (last.accuracy - rows[0].accuracy);
      text += `, ${Math.abs(gain).toFixed(1)} points ${gain < 0 ? "below" : "above"} the ${rows[0].model} (sign test p ${last.pairing.p_value < 0.001 ? "" : "= "}${probability(last.pairing.p_value)})`;
    }
    return make("p", { class: "headline" }, `${text}.`);
  }

  function resultTable() {
    const all = runs.flatMap((run) => run.results);
    if (!all.length) return make("p", null, "The records hold no evaluation of answers yet.");
    const measured = all.some((row) => typeof row.accuracy === "number");
    const paired = all.some((row) => row.pairing);
    const onTest = all.some((row) => row.split === "test"), mixed = new Set(all.map((row) => row.split)).size > 1;
    const columns = [
      ...(several ? [["run", "left"]] : []), ["model", "left"], ...(mixed ? [["read on", "left"]] : []),
      ...(measured ? [["accuracy %", ""], ["95 % interval", ""], ["right", ""]] : []), ["mean reward", ""],
      ...(paired ? [["gained", ""], ["lost", ""], ["sign test p", ""]] : []),
      ["made at", "left"], ...(onTest && measured ? [["dev %", ""]] : []), ["trained on", ""], ["time", ""],
    ];
    const cells = (run, row, at) => [
      ...(several ? [at ? null : run.name] : []), row.model, ...(mixed ? [row.split] : []),
      ...(measured ? [percent(row.accuracy), typeof row.low === "number" ? `${percent(row.low)} to ${percent(row.high)}` : none,
        row.correct === null ? none : `${count(row.correct)} of ${count(row.total)}`] : []), number(row.reward),
      ...(paired ? (row.pairing ? [count(row.pairing.gained), count(row.pairing.lost), probability(row.pairing.p_value)] : ["", "", ""]) : []),
      row.when || none, ...(onTest && measured ? [percent(row.dev_accuracy)] : []), count(row.examples), duration(row.seconds),
    ];
    const rows = [];
    for (const method of data.methods) {
      for (const place of method.runs) rows.push(...runs[place].results.map((row, at) => cells(runs[place], row, at)));
      if (method.runs.length > 1) {
        for (const [at, row] of method.results.entries()) {
          const filled = [at ? null : method.name, row.model, ...(mixed ? [row.split] : []), percent(row.accuracy), `${percent(row.low)} to ${percent(row.high)}`];
          rows.push({ kind: "mean", cells: columns.map((_, place) => (place < filled.length ? filled[place] : "")) });
        }
      }
    }
    const read = mixed ? "" : `Read on ${onTest ? "test" : "dev, for test has not been read"}. `;
    const notes = [`${paired ? "" : read}“trained on” counts sequences since the base model, every pass; “time” is that of training steps.`];
    if (data.methods.some((method) => method.runs.length > 1)) notes.push("Beside a mean stands the range of its runs.");
    if (paired) notes.unshift(`${read}Gained and lost: questions that this model alone, or the run's warm-up alone, answers right; the two-sided sign test is over these.`);
    if (runs.some((run) => run.test_best)) notes.unshift("test-best: chosen on the test set itself, so that its accuracy is too high.");
    const against = data.against_first.flatMap((pair, place) => (pair ? [[runs[place + 1].name, count(pair.gained), count(pair.lost), count(pair.both), count(pair.neither), probability(pair.p_value)]] : []));
    return make("div", null, table(notes.join(" "), columns, rows), against.length
      ? table(`The last model of each run against that of ${runs[0].name}, on the test questions that both were asked`, [["run", "left"], ["gained", ""], ["lost", ""], ["both right", ""], ["both wrong", ""], ["sign test p", ""]], against)
      : null);
  }

  // ---- Curves

  const AXES = { step: "step", sequences: "sequences trained on", seconds: "time of training steps" };
  const USUAL = { dev: "sequences", rl: "step", supervised: "step" };
  const GROUPS = { dev: "Evaluations on dev", rl: "Reinforcement", supervised: "Supervised steps" };
  const state = { axis: "" };
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axisLabel = (group, axis) => (axis === "step" && group === "rl" ? "iteration" : AXES[axis]);
  const axisText = (axis) => (value) => (axis === "seconds" ? duration(value) : count(value));

  // What tells a metric from the others of its chart: what is behind the slash, or, where that is the same, before it.
  function shortName(metric, all) {
    const ends = all.map((one) => one.split("/").pop());
    const name = new Set(ends).size < ends.length ? metric.split("/")[0] : metric.split("/").pop();
    return name.replace(/^outcome_|_tokens_per_s$/g, "").replaceAll("_", " ");
  }

  // What is drawn of a chart: one entry a line, {label, x, y, color, dash, thin, extra}.
  function linesOf(chart, metrics, axis) {
    const lines = [];
    // The name at the end of a line is the short one; SFT's has none there beside reinforcement's of several runs.
    const add = (lot, label, color, options) => {
      for (const [place, metric] of metrics.entries()) {
        for (const group of chart.group === "dev" ? ["dev_sft", "dev_rl"] : [chart.group]) {
          const part = lot[group];
          if (!part || !part.values[metric] || part.values[metric].every((value) => value === null)) continue;
          const stage = metric.startsWith("rerank/") ? "" : group === "dev_sft" ? "SFT" : group === "dev_rl" && !several ? options.algorithm : "";
          const parts = [several ? label : "", metrics.length > 1 ? shortName(metric, metrics) : "", stage].filter(Boolean);
          const said = parts.join(" "), end = parts.length > 1 || !options.short ? said : options.short;
          const low = part.values["eval/interval_low"], high = part.values["eval/interval_high"];
          lines.push({
            label: said || chart.title, x: part[axis], y: part.values[metric], mean: part.mean_of, thin: options.thin, end: said && !options.thin && !(several && group === "dev_sft" && lot.dev_rl) ? end : "",
            color: style(`--c${(metrics.length > 1 ? place : color) % 8}`), dash: group === "dev_sft" ? [6, 4] : undefined,
            interval: metric === "eval/accuracy" && low && !options.mean ? (i) => ` (${percent(low[i])} to ${percent(high[i])})` : null,
          });
        }
      }
    };
    data.methods.forEach((method, color) => {
      const many = method.runs.length > 1;
      for (const place of method.runs) add(runs[place].lines, runs[place].name, color, { thin: many, algorithm: runs[place].algorithm });
      if (many) add(method.means, method.name, color, { mean: true, short: method.short });
    });
    return lines;
  }

  // Lines with points of their own, over all of their points together: gaps are no points of theirs, and are spanned.
  function joined(lines) {
    const xs = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    const place = new Map(xs.map((x, i) => [x, i]));
    const columns = lines.map((line) => {
      const column = new Array(xs.length).fill(null);
      line.x.forEach((x, i) => { column[place.get(x)] = line.y[i]; });
      return column;
    });
    return [xs, ...columns];
  }

  function nearest(plot, series, at) {
    const column = plot.data[series];
    if (series === 0 || column[at] !== null) return at;
    for (let away = 1; away < column.length; away++) {
      if (column[at - away] !== null && column[at - away] !== undefined) return at - away;
      if (column[at + away] !== null && column[at + away] !== undefined) return at + away;
    }
    return at;
  }

  function shortened(context, text, width) {
    if (context.measureText(text).width <= width) return text;
    while (text.length > 1 && context.measureText(`${text}…`).width > width) text = text.slice(0, -1);
    return `${text}…`;
  }

  // Names at the ends of the lines, apart from each other, and the moments that are marked.
  function annotate(lines, marks, axis, room) {
    return (plot) => {
      const context = plot.ctx, ratio = devicePixelRatio, box = plot.bbox;
      context.save();
      context.font = `${12 * ratio}px system-ui, sans-serif`;
      context.textBaseline = "middle";
      context.textAlign = "left";
      const ends = lines.flatMap((line, i) => {
        if (!line.end) return [];
        let last = line.y.length - 1;
        while (last > 0 && line.y[last] === null) last--;
        return [{ y: plot.valToPos(line.y[last], "y", true), label: line.end, color: line.color }];
      }).sort((a, b) => a.y - b.y);
      const gap = 14 * ratio;
      ends.forEach((end, i) => { if (i) end.y = Math.max(end.y, ends[i - 1].y + gap); });
      const over = ends.length ? ends[ends.length - 1].y - (box.top + box.height) : 0;
      if (over > 0) ends.reverse().forEach((end, i) => { end.y = Math.min(end.y, box.top + box.height - i * gap); });
      for (const end of ends) {
        context.fillStyle = end.color;
        context.fillText(shortened(context, end.label, (room - 10) * ratio), box.left + box.width + 6 * ratio, end.y);
      }
      context.textBaseline = "bottom";
      context.strokeStyle = context.fillStyle = style("--soft");
      context.lineWidth = ratio;
      context.setLineDash([2 * ratio, 3 * ratio]);
      const said = new Set(), drawn = new Set();
      for (const mark of marks) {
        if (drawn.has(`${mark.label} ${mark[axis]}`)) continue;
        drawn.add(`${mark.label} ${mark[axis]}`);
        const x = plot.valToPos(mark[axis], "x", true);
        if (x < box.left || x > box.left + box.width) continue;
        context.beginPath();
        context.moveTo(x, box.top);
        context.lineTo(x, box.top + box.height);
        context.stroke();
        if (said.has(mark.label)) continue;
        context.textAlign = x + context.measureText(mark.label).width > box.left + box.width ? "right" : "left";
        context.fillText(mark.label, x, box.top - 2 * ratio - (said.size % 2) * gap);
        said.add(mark.label);
      }
      context.restore();
    };
  }

  // Room above and below; shares stay between 0 and 1, and a line that is level stands in the middle.
  const yRange = (share) => (_, low, high) => {
    if (low === null) return [0, 1];
    if (low === high) [low, high] = share ? [0, 1] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
    const room = (high - low) * 0.06;
    return share ? [Math.max(0, low - room), Math.min(1, high + room)] : [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
  };
  const whole = [1, 2, 5].flatMap((n) => Array.from({ length: 12 }, (_, power) => n * 10 ** power)).sort((a, b) => a - b);

  const plots = [];
  function plot(holder, { title, lines, marks, group, axis, xText, xLabel, yText, share }) {
    const columns = joined(lines), soft = style("--soft"), width = holder.clientWidth || 360;
    const ends = lines.map((line) => line.end.length);
    const room = Math.max(...ends) ? Math.min(width * 0.36, 14 + 6.6 * Math.max(...ends)) : 12;
    const above = 12 + 14 * Math.min(2, new Set(marks.map((mark) => mark.label)).size);
    const axisStyle = { stroke: soft, grid: { stroke: style("--grid"), width: 1 }, ticks: { stroke: style("--line"), width: 1 }, font: "12px system-ui, sans-serif" };
    const made = new uPlot({
      width, height: 230, padding: [above, room, 0, 0],
      cursor: { sync: { key: group }, y: false, drag: { x: true, y: false }, dataIdx: nearest, points: { size: 7 } },
      scales: { x: { time: false }, y: { range: yRange(share) } },
      axes: [
        { ...axisStyle, size: 26, gap: 3, space: 56, incrs: axis === "seconds" ? undefined : whole, label: xLabel, labelSize: 18, labelGap: 0, labelFont: "12px system-ui, sans-serif", values: (_, ticks) => ticks.map(xText) },
        { ...axisStyle, size: 54, values: (_, ticks) => ticks.map(yText) },
      ],
      series: [
        { label: xLabel, value: (_, value) => (value === null ? none : xText(value)) },
        ...lines.map((line, place) => ({
          label: line.label, stroke: line.color, width: line.thin ? 1 : 2, alpha: line.thin ? 0.4 : 1, dash: line.dash, spanGaps: true,
          class: line.thin ? "thin" : undefined, points: { show: line.x.length <= 40 && !line.thin, size: 5, fill: line.color },
          value: (own, value, _, i) => (value === null || value === undefined ? none : yText(value) + (line.interval ? line.interval(line.x.indexOf(own.data[0][i])) : "")),
        })),
      ],
      hooks: { draw: [annotate(lines, marks, axis, room)] },
    }, columns, holder);
    const first = lines[0], end = first.y.length - 1;
    holder.setAttribute("tabindex", "0");
    holder.setAttribute("role", "group");
    holder.setAttribute("aria-label", `${title}, ${plural(lines.length, "line")}; ${first.label}: ${yText(first.y[0])} at first, ${yText(first.y[end])} at last. Left and right arrow keys read values.`);
    holder.onkeydown = (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (!by) return;
      event.preventDefault();
      const at = Math.max(0, Math.min(columns[0].length - 1, (made.cursor.idx ?? (by > 0 ? -1 : columns[0].length)) + by));
      made.setCursor({ left: made.valToPos(columns[0][at], "x"), top: 10 });
    };
    plots.push([made, holder]);
  }

  function curves() {
    const holder = document.getElementById("curve-list");
    holder.replaceChildren();
    for (const [group, heading] of Object.entries(GROUPS)) {
      const own = data.charts.filter((chart) => chart.group === group);
      if (!own.length) continue;
      const axis = state.axis || USUAL[group], grid = make("div", { class: several ? "charts wide" : "charts" });
      const marks = runs.flatMap((run) => run.marks.filter((mark) => mark.group === group));
      holder.append(make("h3", null, heading), grid);
      for (const chart of own) {
        for (const metrics of several ? chart.metrics.map((metric) => [metric]) : [chart.metrics]) {
          const lines = linesOf(chart, metrics, axis);
          if (!lines.length) continue;
          const name = metrics.length < chart.metrics.length ? `: ${shortName(metrics[0], chart.metrics)}` : "";
          const mean = Math.max(...lines.map((line) => line.mean)), box = make("div", { class: "plot" });
          const unit = [chart.share ? "%" : chart.unit === "1" ? "" : chart.unit, chart.meaning.replaceAll("`", ""), mean > 1 ? `each point is the mean of ${mean} steps` : ""].filter(Boolean).join("; ");
          grid.append(make("div", { class: "chart" }, make("h4", null, chart.title + name), make("p", { class: "unit" }, unit || " "), box));
          plot(box, {
            title: chart.title + name, lines, marks, group, axis, xText: axisText(axis), xLabel: axisLabel(group, axis), share: chart.share,
            yText: chart.share ? (value) => (value === null ? none : `${+(100 * value).toFixed(1)}`) : number,
          });
        }
      }
    }
  }

  // ---- Completions

  const ROW = { moment: 0, outcome: 1, cause: 2, reward: 3, value: 4, tokens: 5, flags: 6, text: 7, detail: 8, functions: 9 };
  const OUTCOMES = { correct: "right", no_answer: "no answer", no_gold: "no gold answer" };
  const outcomeOf = (row) => browser.outcomes[row[ROW.outcome]];
  const momentOf = (row) => browser.moments[row[ROW.moment]];
  const isRight = (row) => outcomeOf(row) === "correct";
  const filters = { q: "", split: "", run: "", at: "", cause: "", change: "", suspect: "", low: "", high: "" };
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
    const low = filters.low === "" ? -Infinity : +filters.low, high = filters.high === "" ? Infinity : +filters.high;
    return (filters.run === "" || momentOf(row).run === +filters.run) && (!filters.at || momentOf(row).role === filters.at) &&
      (!filters.cause || outcomeOf(row) === filters.cause || browser.causes[row[ROW.cause]] === filters.cause) &&
      (!filters.suspect || row[ROW.flags] & 2) && row[ROW.tokens] >= low && row[ROW.tokens] <= high &&
      (asked || `${browser.texts[row[ROW.text]]}\n${row[ROW.detail]}`.toLowerCase().includes(needle()));
  }

  function matching() {
    return browser.questions.filter((question) => {
      const [split, , , , rows] = question, asked = inQuestion(question);
      if (filters.split && split !== filters.split) return false;
      const own = filters.run === "" ? rows : rows.filter((row) => momentOf(row).run === +filters.run);
      if (filters.change && ![...changes(own).values()].includes(filters.change)) return false;
      return own.some((row) => fits(row, asked));
    });
  }

  function marked(tag, properties, text) {
    const wanted = needle(), element = make(tag, properties), lower = text.toLowerCase();
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
    const outcome = outcomeOf(row), cause = browser.causes[row[ROW.cause]];
    if (outcome === "correct") return make("span", { class: "badge good" }, "✓ right");
    if (outcome === "no_gold") return make("span", { class: "badge plain" }, OUTCOMES.no_gold);
    return make("span", { class: "badge bad" }, `✗ ${OUTCOMES[cause] || cause}`);
  }

  function completion(row) {
    const flags = row[ROW.flags];
    const facts = [
      row[ROW.value] === "" ? null : `answer ${row[ROW.value]}`, `reward ${number(row[ROW.reward])}`,
      `${plural(row[ROW.tokens], "token")}${flags & 1 ? "" : ", cut"}`,
      ...Object.entries(row[ROW.functions] || {}).map(([name, value]) => `${name} ${number(value)}`),
    ];
    return make("div", { class: "completion" },
      make("div", { class: "meta" }, make("strong", null, momentOf(row).label), badge(row), flags & 2 ? make("span", { class: "badge warn" }, "! suspicious") : null),
      make("div", { class: "meta" }, ...facts.filter(Boolean).map((fact) => make("span", null, fact))),
      row[ROW.detail] ? marked("div", { class: "meta" }, row[ROW.detail]) : null,
      marked("pre", null, browser.texts[row[ROW.text]]));
  }

  const CHANGES = { gained: ["good", "gained"], lost: ["bad", "lost"], both: ["plain", "right before and after"], neither: ["plain", "wrong before and after"] };

  function card(whole) {
    const [split, id, question, gold, rows] = whole, changed = changes(rows), parts = [], asked = inQuestion(whole);
    runs.forEach((run, place) => {
      const own = rows.filter((row) => momentOf(row).run === place);
      if (!own.length) return;
      let shown = own.filter((row) => momentOf(row).role !== "during");
      if (!shown.length) shown = own.length > 2 ? [own[0], own[own.length - 1]] : own;
      const rest = own.filter((row) => !shown.includes(row));
      if (several) parts.push(make("h4", null, run.name));
      parts.push(make("div", { class: "said" }, ...shown.map(completion)));
      if (rest.length) {
        const more = make("details", null, make("summary", null, `on the way: ${rest.map((row) => (isRight(row) ? "✓" : "✗")).join(" ")}`));
        const fill = () => { if (more.childElementCount === 1) more.append(make("div", { class: "said" }, ...rest.map(completion))); };
        more.addEventListener("toggle", fill);
        if (!shown.some((row) => fits(row, asked)) && rest.some((row) => fits(row, asked))) {
          more.open = true;
          fill();
        }
        parts.push(more);
      }
    });
    return make("article", { class: "question" },
      make("div", { class: "meta" }, make("span", null, split), marked("span", null, id),
        ...[...changed].map(([run, kind]) => make("span", { class: `badge ${CHANGES[kind][0]}` }, `${several ? `${runs[run].name}: ` : ""}${CHANGES[kind][1]}`))),
      marked("p", null, question), gold === "" ? null : marked("p", { class: "soft" }, `Gold answer: ${gold}`), ...parts);
  }

  function list() {
    const found = matching(), holder = document.getElementById("question-list");
    document.getElementById("found").textContent = `${count(found.length)} of ${plural(browser.questions.length, "question")} on this page match.`;
    holder.replaceChildren(...found.slice(0, limit).map(card));
    if (found.length > limit) {
      const more = make("button", { type: "button", onclick: () => {
        const before = holder.querySelectorAll("article").length;
        limit += PAGE;
        list();
        const fresh = holder.querySelectorAll("article")[before];
        fresh.setAttribute("tabindex", "-1");
        fresh.focus();
      } }, `Show ${Math.min(PAGE, found.length - limit)} more`);
      holder.append(more);
    }
  }

  function keep() {
    const given = Object.entries(filters).filter(([, value]) => value !== "");
    try {
      history.replaceState(null, "", given.length ? `#?${new URLSearchParams(given)}` : "#completions");
    } catch { /* where a browser forbids it, filters are not kept over a reload */ }
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
    const choice = (name, options) => make("select", { name }, ...options.map(([value, text]) => make("option", { value }, text)));
    const causes = [...new Set(browser.questions.flatMap(([, , , , rows]) => rows.flatMap((row) => [outcomeOf(row), browser.causes[row[ROW.cause]]])))].filter(Boolean).sort();
    const form = make("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      labelled("Search in questions and completions", make("input", { type: "search", name: "q" }), "wide"),
      labelled("Set", choice("split", [["", "all"], ...browser.shown.map((own) => [own.split, own.split])])),
      several ? labelled("Run", choice("run", [["", "all"], ...runs.map((run, place) => [String(place), run.name])])) : null,
      labelled("Outcome", choice("cause", [["", "any"], ...causes.map((cause) => [cause, OUTCOMES[cause] || cause])])),
      labelled("Asked", choice("at", [["", "at any time"], ["before", "at the warm-up"], ["during", "on the way"], ["after", "at the end"]])),
      labelled("Against the warm-up", choice("change", [["", "any"], ["gained", "gained"], ["lost", "lost"], ["both", "right before and after"], ["neither", "wrong before and after"]])),
      labelled("Length, tokens", make("span", { class: "pair" }, make("input", { type: "number", name: "low", min: 0, placeholder: "from", "aria-label": "tokens, from" }), make("input", { type: "number", name: "high", min: 0, placeholder: "to", "aria-label": "tokens, to" }))),
      make("label", { class: "check" }, make("input", { type: "checkbox", name: "suspect" }), "suspicious only"),
      make("div", null, make("button", { type: "button", onclick: () => { setFilters(Object.fromEntries(Object.keys(filters).map((name) => [name, ""]))); keep(); } }, "Clear")));
    form.addEventListener("input", (event) => {
      const field = event.target;
      filters[field.name] = field.type === "checkbox" ? (field.checked ? "1" : "") : field.value;
      limit = PAGE;
      list();
      keep();
    });
    const told = browser.shown.map((own) => own.questions < own.of_questions
      ? `${own.split}: a sample of ${count(own.questions)} of ${plural(own.of_questions, "question")} (${count(own.completions)} of ${plural(own.of_completions, "completion")}), drawn by a hash of the question, examples of failures first; all else on this page counts all of them`
      : `${own.split}: all ${plural(own.questions, "question")}, ${plural(own.completions, "completion")}`);
    const left = runs.filter((run) => run.left_out).map((run) => `${several ? `${run.name}: ` : ""}${plural(run.left_out, "evaluation")} on dev ${run.left_out === 1 ? "is" : "are"} in the curves and not here`);
    section("completions", "Completions", "Completions", make("p", null, `The same question at the warm-up, on the way and at the end. ${[...told, ...left].join(". ")}.`),
      form, make("p", { id: "found", "aria-live": "polite" }), make("div", { id: "question-list" }));
    const hash = location.hash.startsWith("#?") ? Object.fromEntries(new URLSearchParams(location.hash.slice(2))) : {};
    setFilters(Object.fromEntries(Object.entries(hash).filter(([name]) => name in filters)));
  }

  // ---- Failures, signs, length, votes

  const titled = (run, ...children) => [several ? make("h3", null, run.name) : null, ...children].filter(Boolean);
  const share = (n, of) => (of ? `${count(n)} (${percent(n / of)} %)` : none);

  function failureSection() {
    if (!runs.some((run) => run.failures.length)) return;
    const show = (run, cause) => {
      setFilters({ ...Object.fromEntries(Object.keys(filters).map((name) => [name, ""])), cause, run: several ? String(run) : "" });
      keep();
      document.getElementById("completions").scrollIntoView();
    };
    const examples = (place, cause) => {
      const found = [];
      for (const question of browser.questions) {
        const row = question[4].findLast((one) => momentOf(one).run === place && browser.causes[one[ROW.cause]] === cause);
        if (row) found.push([question, row]);
        if (found.length === 3) break;
      }
      const box = make("details", null, make("summary", null, `examples of “${OUTCOMES[cause] || cause}”`));
      box.addEventListener("toggle", () => {
        if (box.childElementCount > 1) return;
        box.append(make("div", { class: "said" }, ...found.map(([[, , question, gold], row]) => {
          const shown = completion(row);
          shown.prepend(make("p", null, question), make("p", { class: "soft" }, `Gold answer: ${gold}`));
          return shown;
        })));
      });
      return found.length ? box : null;
    };
    section("failures", "Failures", "Failures by cause", make("p", null, "A cause is a button: it shows its completions above."),
      ...runs.flatMap((run, place) => titled(run,
        table("Completions that are not right, and their share of all completions of the column", [["cause", "left"], ...run.groups.map((group) => [`${group.name}, of ${count(group.count)}`, ""])],
          run.failures.map((failure) => [make("button", { type: "button", class: "link", onclick: () => show(place, failure.cause) }, OUTCOMES[failure.cause] || failure.cause),
            ...failure.counts.map((n, column) => share(n, run.groups[column].count))])),
        ...run.failures.map((failure) => examples(place, failure.cause)))));
  }

  function signSection() {
    if (!runs.some((run) => run.signs.length)) return;
    const rows = [
      ["right answers, %", (sign) => percent(sign.correct)],
      ["suspicious, %", (sign) => percent(sign.suspicious)],
      ["cut at the longest length, %", (sign) => percent(sign.cut)],
      ["length, mean tokens", (sign) => number(sign.tokens)],
      ["reward of those not right, mean", (sign) => number(sign.unearned)],
      ["most frequent answer", (sign) => (sign.commonest === "" ? none : `${sign.commonest.length > 16 ? `${sign.commonest.slice(0, 16)}…` : sign.commonest} (${percent(sign.commonest_share)} %)`)],
      ["different texts, %", (sign) => percent(sign.distinct)],
    ];
    section("signs", "Signs", "Signs of reward hacking",
      make("p", null, "What a fooled reward brings about: more suspicious completions (right in spite of a wrong equation, or a letter that was not computed), reward without right answers, one answer or one text for all questions, longer completions, and sampled completions that get better while dev and test do not."),
      ...runs.filter((run) => run.signs.length).flatMap((run) => titled(run, table("“–” where a sign does not apply", [["sign", "left"], ...run.signs.map((sign) => [`${sign.group}, ${count(sign.count)}`, ""])],
        rows.map(([name, cell]) => [name, ...run.signs.map(cell)])))));
  }

  function lengthLines(run) {
    return run.lengths.slice(0, 2).filter((group) => group.classes.length).map((group, place) => ({
      label: group.name, x: group.classes.map((one) => one.mean), y: group.classes.map((one) => one.correct / one.count), mean: 1, end: "",
      color: style(`--c${place}`), dash: place ? undefined : [6, 4],
      interval: (i) => ` (${percent(group.classes[i].interval[0])} to ${percent(group.classes[i].interval[1])}), ${count(group.classes[i].count)} of ${group.classes[i].low} to ${group.classes[i].high} tokens`,
    }));
  }

  function lengthPlots() {
    runs.forEach((run, place) => {
      const holder = document.getElementById(`length-${place}`), lines = lengthLines(run);
      if (!holder || !lines.length) return;
      holder.replaceChildren();
      plot(holder, { title: "Right answers by length", lines, marks: [], group: `length-${place}`, axis: "x", xText: number, xLabel: "mean tokens of a class", yText: (value) => (value === null ? none : `${+(100 * value).toFixed(1)}`), share: true });
    });
  }

  function lengthSection() {
    if (!runs.some((run) => lengthLines(run).length)) return;
    section("length", "Length", "Length against correctness", make("p", null, "Completions in classes of about as many, by length: right answers in %, over the mean length. Classes of one length stay together."),
      make("div", { class: "charts" }, ...runs.map((run, place) => (lengthLines(run).length ? make("div", { class: "chart" }, several ? make("h4", null, run.name) : null, make("div", { class: "plot", id: `length-${place}` })) : null))));
  }

  function voteSection() {
    if (!data.votes.length) return;
    const shown = ([value, [low, high]]) => `${percent(value)} (${percent(low)} to ${percent(high)})`;
    section("votes", "Votes", "Majority vote", ...data.votes.map((vote) => table(
      `${vote.name}: ${plural(vote.questions, "question")}${vote.left_out ? `, of which ${count(vote.left_out)} were too long to be asked and count as not solved` : ""}; % (95 % interval)`,
      [["samples k", ""], ["majority right, maj@k", ""], ["any right, pass@k", ""]], vote.rows.map(([k, maj, pass]) => [count(k), shown(maj), shown(pass)]))));
  }

  // ---- Time, settings, provenance

  function timeSection() {
    if (!runs.some((run) => run.phases.length)) return;
    section("time", "Time", "Time by phase", ...runs.flatMap((run) => {
      const total = run.phases.reduce((sum, phase) => sum + phase.seconds, 0);
      return titled(run, table(`${duration(total)} in all${run.phases.some((phase) => !phase.stage) ? "; “everything else” is the test set, checkpoints, and steps that an interruption undid" : ""}`, [["stage", "left"], ["phase", "left"], ["time", ""], ["share %", ""]],
        run.phases.map((phase) => [phase.stage || none, phase.phase, duration(phase.seconds), percent(phase.seconds / total)])));
    }));
  }

  function settingSection() {
    if (!data.settings.length) return;
    section("settings", "Settings", "Settings that differ from the defaults",
      table(several ? "Rows in which the runs differ are coloured and begin with ≠." : "As JSON.", [["setting", "left"], ["default", "wrap"], ...runs.map((run) => [several ? run.name : "this run", "wrap"])],
        data.settings.map((setting) => ({ kind: setting.differs ? "differs" : null, cells: [make("code", null, `${setting.differs ? "≠ " : ""}${setting.key}`), ...[setting.default, ...setting.values].map((value) => make("code", null, value))] }))));
  }

  function madeSection() {
    const facts = (pairs) => make("dl", null, ...pairs.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([name, value]) => [make("dt", null, name), make("dd", null, value)]));
    const hardware = (own) => (own ? `${plural(own.devices, "device")} (${own.device}), ${Object.entries(own.mesh).map(([name, size]) => `${name} ${size}`).join(", ")}; ${plural(own.processes, "process", "processes")}; ${own.host}, ${plural(own.cores, "core")}${own.memory_gb ? `, ${number(own.memory_gb)} GB` : ""}` : null);
    section("made", "Made with", "Made with", ...runs.flatMap((run) => {
      const info = run.info;
      return titled(run, facts([
        ["command", info.command ? make("code", null, info.command) : null],
        ["folder", make("code", null, run.folder)],
        ["state", run.status],
        ["commit", info.commit ? `${info.commit}${info.dirty ? ", with changes" : ""}` : null],
        ["python", info.python], ["platform", info.platform],
        ["versions", Object.entries(info.versions || {}).filter(([, version]) => version).map(([name, version]) => `${name} ${version}`).join(", ")],
        ...run.attempts.flatMap((attempt, place) => [[run.attempts.length > 1 ? `work ${place + 1}` : "at work", `${attempt.started} to ${attempt.ended || "(no end recorded: at work, or killed)"}`], ["hardware", hardware(attempt.hardware)]]),
        ...run.changes.map((change) => [`after step ${count(change.after_step)}`, Object.entries(change.settings).map(([key, [old, now]]) => `${key} from ${JSON.stringify(old)} to ${JSON.stringify(now)}`).join(", ")]),
      ]));
    }), make("p", { class: "soft" }, `Written by reft_jax ${data.version} on ${data.made}. Curves by uPlot (MIT licence).`));
  }

  // ---- The page

  function draw() {
    for (const [made] of plots) made.destroy();
    plots.length = 0;
    curves();
    lengthPlots();
  }

  document.querySelector("#top").append(
    make("h1", null, several ? `${runs.length} runs` : runs[0].name),
    make("p", { class: "soft" }, several ? `Written ${data.made}.` : `${runs[0].status}. Written ${data.made}.`),
    ...(several ? [make("ul", null, ...runs.map((run) => make("li", null, `${run.name}: ${run.status}`)))] : []));
  section("results", "Results", "Results", several ? null : headline(runs[0]), resultTable());
  if (data.charts.length) {
    const axes = [["", "what suits each"], ...Object.entries(AXES).map(([axis, label]) => [axis, label === "step" ? "steps" : label])];
    section("curves", "Curves", "Curves", make("p", null, `Hover, or use the arrow keys on a focused chart, to read values; drag to zoom, double-click to see all.${several ? " Dashed lines are SFT." : ""}`),
      make("fieldset", { onchange: (event) => { state.axis = event.target.value; draw(); } }, make("legend", null, "Drawn over"),
        ...axes.map(([axis, label]) => make("label", null, make("input", { type: "radio", name: "axis", value: axis, checked: axis === "" }), ` ${label}`))),
      make("div", { id: "curve-list" }));
  } else {
    section("curves", "Curves", "Curves", make("p", null, "No step is recorded yet."), make("div", { id: "curve-list" }));
  }
  if (browser.questions.length) completionSection();
  if (browser.questions.length) failureSection();
  signSection();
  lengthSection();
  voteSection();
  timeSection();
  settingSection();
  madeSection();
  document.querySelector("nav").append(make("ul", null, ...sections.map(([id, title]) => make("li", null, make("a", { href: `#${id}` }, title)))));
  draw();

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => { for (const [made, holder] of plots) made.setSize({ width: holder.clientWidth, height: 230 }); });
  });
})();
