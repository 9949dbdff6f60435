// Charts of metrics, drawn by uPlot: over steps, sequences or time, with several runs in one.

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
        const stage = metric.startsWith("rerank/")
          ? ""
          : group === "dev_sft"
            ? "SFT"
            : group === "dev_rl" && !several
              ? options.algorithm
              : "";
        const parts = [several ? label : "", metrics.length > 1 ? shortName(metric, metrics) : "", stage].filter(
          Boolean,
        );
        const said = parts.join(" "),
          end = parts.length > 1 || !options.short ? said : options.short;
        const low = part.values["eval/interval_low"],
          high = part.values["eval/interval_high"];
        lines.push({
          label: said || chart.title,
          x: part[axis],
          y: part.values[metric],
          mean: part.mean_of,
          thin: options.thin,
          end: said && !options.thin && !(several && group === "dev_sft" && lot.dev_rl) ? end : "",
          color: style(`--c${(metrics.length > 1 ? place : color) % 8}`),
          dash: group === "dev_sft" ? [6, 4] : undefined,
          interval:
            metric === "eval/accuracy" && low && !options.mean
              ? (i) => ` (${percent(low[i])} to ${percent(high[i])})`
              : null,
        });
      }
    }
  };
  data.methods.forEach((method, color) => {
    const many = method.runs.length > 1;
    for (const place of method.runs)
      add(runs[place].lines, runs[place].name, color, { thin: many, algorithm: runs[place].algorithm });
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
    line.x.forEach((x, i) => {
      column[place.get(x)] = line.y[i];
    });
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
    const context = plot.ctx,
      ratio = devicePixelRatio,
      box = plot.bbox;
    context.save();
    context.font = `${12 * ratio}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    context.textAlign = "left";
    const ends = lines
      .flatMap((line, i) => {
        if (!line.end) return [];
        let last = line.y.length - 1;
        while (last > 0 && line.y[last] === null) last--;
        return [{ y: plot.valToPos(line.y[last], "y", true), label: line.end, color: line.color }];
      })
      .sort((a, b) => a.y - b.y);
    const gap = 14 * ratio;
    ends.forEach((end, i) => {
      if (i) end.y = Math.max(end.y, ends[i - 1].y + gap);
    });
    const over = ends.length ? ends[ends.length - 1].y - (box.top + box.height) : 0;
    if (over > 0)
      ends.reverse().forEach((end, i) => {
        end.y = Math.min(end.y, box.top + box.height - i * gap);
      });
    for (const end of ends) {
      context.fillStyle = end.color;
      context.fillText(shortened(context, end.label, (room - 10) * ratio), box.left + box.width + 6 * ratio, end.y);
    }
    context.textBaseline = "bottom";
    context.strokeStyle = context.fillStyle = style("--soft");
    context.lineWidth = ratio;
    context.setLineDash([2 * ratio, 3 * ratio]);
    const said = new Set(),
      drawn = new Set();
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
  return share
    ? [Math.max(0, low - room), Math.min(1, high + room)]
    : [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
};
const whole = [1, 2, 5].flatMap((n) => Array.from({ length: 12 }, (_, power) => n * 10 ** power)).sort((a, b) => a - b);

const plots = [];
function plot(holder, { title, lines, marks, group, axis, xText, xLabel, yText, share }) {
  const columns = joined(lines),
    soft = style("--soft"),
    width = holder.clientWidth || 360;
  const ends = lines.map((line) => line.end.length);
  const room = Math.max(...ends) ? Math.min(width * 0.36, 14 + 6.6 * Math.max(...ends)) : 12;
  const above = 12 + 14 * Math.min(2, new Set(marks.map((mark) => mark.label)).size);
  const axisStyle = {
    stroke: soft,
    grid: { stroke: style("--grid"), width: 1 },
    ticks: { stroke: style("--line"), width: 1 },
    font: "12px system-ui, sans-serif",
  };
  const made = new uPlot(
    {
      width,
      height: 230,
      padding: [above, room, 0, 0],
      cursor: { sync: { key: group }, y: false, drag: { x: true, y: false }, dataIdx: nearest, points: { size: 7 } },
      scales: { x: { time: false }, y: { range: yRange(share) } },
      axes: [
        {
          ...axisStyle,
          size: 26,
          gap: 3,
          space: 56,
          incrs: axis === "seconds" ? undefined : whole,
          label: xLabel,
          labelSize: 18,
          labelGap: 0,
          labelFont: "12px system-ui, sans-serif",
          values: (_, ticks) => ticks.map(xText),
        },
        { ...axisStyle, size: 54, values: (_, ticks) => ticks.map(yText) },
      ],
      series: [
        { label: xLabel, value: (_, value) => (value === null ? none : xText(value)) },
        ...lines.map((line, place) => ({
          label: line.label,
          stroke: line.color,
          width: line.thin ? 1 : 2,
          alpha: line.thin ? 0.4 : 1,
          dash: line.dash,
          spanGaps: true,
          class: line.thin ? "thin" : undefined,
          points: { show: line.x.length <= 40 && !line.thin, size: 5, fill: line.color },
          value: (own, value, _, i) =>
            value === null || value === undefined
              ? none
              : yText(value) + (line.interval ? line.interval(line.x.indexOf(own.data[0][i])) : ""),
        })),
      ],
      hooks: { draw: [annotate(lines, marks, axis, room)] },
    },
    columns,
    holder,
  );
  const first = lines[0],
    end = first.y.length - 1;
  holder.setAttribute("tabindex", "0");
  holder.setAttribute("role", "group");
  holder.setAttribute(
    "aria-label",
    `${title}, ${plural(lines.length, "line")}; ${first.label}: ${yText(first.y[0])} at first, ${yText(first.y[end])} at last. Left and right arrow keys read values.`,
  );
  holder.onkeydown = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!by) return;
    event.preventDefault();
    const at = Math.max(
      0,
      Math.min(columns[0].length - 1, (made.cursor.idx ?? (by > 0 ? -1 : columns[0].length)) + by),
    );
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
    const axis = state.axis || USUAL[group],
      grid = make("div", { class: several ? "charts wide" : "charts" });
    const marks = runs.flatMap((run) => run.marks.filter((mark) => mark.group === group));
    holder.append(make("h3", null, heading), grid);
    for (const chart of own) {
      for (const metrics of several ? chart.metrics.map((metric) => [metric]) : [chart.metrics]) {
        const lines = linesOf(chart, metrics, axis);
        if (!lines.length) continue;
        const name = metrics.length < chart.metrics.length ? `: ${shortName(metrics[0], chart.metrics)}` : "";
        const mean = Math.max(...lines.map((line) => line.mean)),
          box = make("div", { class: "plot" });
        const unit = [
          chart.share ? "%" : chart.unit === "1" ? "" : chart.unit,
          chart.meaning.replaceAll("`", ""),
          mean > 1 ? `each point is the mean of ${mean} steps` : "",
        ]
          .filter(Boolean)
          .join("; ");
        grid.append(
          make(
            "div",
            { class: "chart" },
            make("h4", null, chart.title + name),
            make("p", { class: "unit" }, unit || " "),
            box,
          ),
        );
        plot(box, {
          title: chart.title + name,
          lines,
          marks,
          group,
          axis,
          xText: axisText(axis),
          xLabel: axisLabel(group, axis),
          share: chart.share,
          yText: chart.share ? (value) => (value === null ? none : `${+(100 * value).toFixed(1)}`) : number,
        });
      }
    }
  }
}

function curveSection() {
  if (data.charts.length) {
    const axes = [
      ["", "what suits each"],
      ...Object.entries(AXES).map(([axis, label]) => [axis, label === "step" ? "steps" : label]),
    ];
    section(
      "curves",
      "Curves",
      "Curves",
      make(
        "p",
        null,
        `Hover, or use the arrow keys on a focused chart, to read values; drag to zoom, double-click to see all.${several ? " Dashed lines are SFT." : ""}`,
      ),
      make(
        "fieldset",
        {
          onchange: (event) => {
            state.axis = event.target.value;
            draw();
          },
        },
        make("legend", null, "Drawn over"),
        ...axes.map(([axis, label]) =>
          make(
            "label",
            null,
            make("input", { type: "radio", name: "axis", value: axis, checked: axis === "" }),
            ` ${label}`,
          ),
        ),
      ),
      make("div", { id: "curve-list" }),
    );
  } else {
    section(
      "curves",
      "Curves",
      "Curves",
      make("p", null, "No step is recorded yet."),
      make("div", { id: "curve-list" }),
    );
  }
}
