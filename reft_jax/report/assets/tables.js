// The sections that are tables, and length against correctness.

function headline(run) {
  const rows = run.results,
    last = rows[rows.length - 1];
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
  const onTest = all.some((row) => row.split === "test"),
    mixed = new Set(all.map((row) => row.split)).size > 1;
  const columns = [
    ...(several ? [["run", "left"]] : []),
    ["model", "left"],
    ...(mixed ? [["read on", "left"]] : []),
    ...(measured
      ? [
          ["accuracy %", ""],
          ["95 % interval", ""],
          ["right", ""],
        ]
      : []),
    ["mean reward", ""],
    ...(paired
      ? [
          ["gained", ""],
          ["lost", ""],
          ["sign test p", ""],
        ]
      : []),
    ["made at", "left"],
    ...(onTest && measured ? [["dev %", ""]] : []),
    ["trained on", ""],
    ["time", ""],
  ];
  const cells = (run, row, at) => [
    ...(several ? [at ? null : run.name] : []),
    row.model,
    ...(mixed ? [row.split] : []),
    ...(measured
      ? [
          percent(row.accuracy),
          typeof row.low === "number" ? `${percent(row.low)} to ${percent(row.high)}` : none,
          row.correct === null ? none : `${count(row.correct)} of ${count(row.total)}`,
        ]
      : []),
    number(row.reward),
    ...(paired
      ? row.pairing
        ? [count(row.pairing.gained), count(row.pairing.lost), probability(row.pairing.p_value)]
        : ["", "", ""]
      : []),
    row.when || none,
    ...(onTest && measured ? [percent(row.dev_accuracy)] : []),
    count(row.examples),
    duration(row.seconds),
  ];
  const rows = [];
  for (const method of data.methods) {
    for (const place of method.runs) rows.push(...runs[place].results.map((row, at) => cells(runs[place], row, at)));
    if (method.runs.length > 1) {
      for (const [at, row] of method.results.entries()) {
        const filled = [
          at ? null : method.name,
          row.model,
          ...(mixed ? [row.split] : []),
          percent(row.accuracy),
          `${percent(row.low)} to ${percent(row.high)}`,
        ];
        rows.push({ kind: "mean", cells: columns.map((_, place) => (place < filled.length ? filled[place] : "")) });
      }
    }
  }
  const read = mixed ? "" : `Read on ${onTest ? "test" : "dev, for test has not been read"}. `;
  const notes = [
    `${paired ? "" : read}“trained on” counts sequences since the base model, every pass; “time” is that of training steps.`,
  ];
  if (data.methods.some((method) => method.runs.length > 1)) notes.push("Beside a mean stands the range of its runs.");
  if (paired)
    notes.unshift(
      `${read}Gained and lost: questions that this model alone, or the run's warm-up alone, answers right; the two-sided sign test is over these.`,
    );
  if (runs.some((run) => run.test_best))
    notes.unshift("test-best: chosen on the test set itself, so that its accuracy is too high.");
  const against = data.against_first.flatMap((pair, place) =>
    pair
      ? [
          [
            runs[place + 1].name,
            count(pair.gained),
            count(pair.lost),
            count(pair.both),
            count(pair.neither),
            probability(pair.p_value),
          ],
        ]
      : [],
  );
  return make(
    "div",
    null,
    table(notes.join(" "), columns, rows),
    against.length
      ? table(
          `The last model of each run against that of ${runs[0].name}, on the test questions that both were asked`,
          [
            ["run", "left"],
            ["gained", ""],
            ["lost", ""],
            ["both right", ""],
            ["both wrong", ""],
            ["sign test p", ""],
          ],
          against,
        )
      : null,
  );
}

const titled = (run, ...children) => [several ? make("h3", null, run.name) : null, ...children].filter(Boolean);
const share = (n, of) => (of ? `${count(n)} (${percent(n / of)} %)` : none);

function failureSection() {
  if (!runs.some((run) => run.failures.length)) return;
  const show = (run, cause) => {
    setFilters({
      ...Object.fromEntries(Object.keys(filters).map((name) => [name, ""])),
      cause,
      run: several ? String(run) : "",
    });
    keep();
    document.getElementById("completions").scrollIntoView();
  };
  const examples = (place, cause) => {
    const found = [];
    for (const question of browser.questions) {
      const row = question[4].findLast(
        (one) => momentOf(one).run === place && browser.causes[one[ROW.cause]] === cause,
      );
      if (row) found.push([question, row]);
      if (found.length === 3) break;
    }
    const box = make("details", null, make("summary", null, `examples of “${OUTCOMES[cause] || cause}”`));
    box.addEventListener("toggle", () => {
      if (box.childElementCount > 1) return;
      box.append(
        make(
          "div",
          { class: "said" },
          ...found.map(([[, , question, gold], row]) => {
            const shown = completion(row);
            shown.prepend(make("p", null, question), make("p", { class: "soft" }, `Gold answer: ${gold}`));
            return shown;
          }),
        ),
      );
    });
    return found.length ? box : null;
  };
  section(
    "failures",
    "Failures",
    "Failures by cause",
    make("p", null, "A cause is a button: it shows its completions above."),
    ...runs.flatMap((run, place) =>
      titled(
        run,
        table(
          "Completions that are not right, and their share of all completions of the column",
          [["cause", "left"], ...run.groups.map((group) => [`${group.name}, of ${count(group.count)}`, ""])],
          run.failures.map((failure) => [
            make(
              "button",
              { type: "button", class: "link", onclick: () => show(place, failure.cause) },
              OUTCOMES[failure.cause] || failure.cause,
            ),
            ...failure.counts.map((n, column) => share(n, run.groups[column].count)),
          ]),
        ),
        ...run.failures.map((failure) => examples(place, failure.cause)),
      ),
    ),
  );
}

function signSection() {
  if (!runs.some((run) => run.signs.length)) return;
  const rows = [
    ["right answers, %", (sign) => percent(sign.correct)],
    ["suspicious, %", (sign) => percent(sign.suspicious)],
    ["cut at the longest length, %", (sign) => percent(sign.cut)],
    ["length, mean tokens", (sign) => number(sign.tokens)],
    ["reward of those not right, mean", (sign) => number(sign.unearned)],
    [
      "most frequent answer",
      (sign) =>
        sign.commonest === ""
          ? none
          : `${sign.commonest.length > 16 ? `${sign.commonest.slice(0, 16)}…` : sign.commonest} (${percent(sign.commonest_share)} %)`,
    ],
    ["different texts, %", (sign) => percent(sign.distinct)],
  ];
  section(
    "signs",
    "Signs",
    "Signs of reward hacking",
    make(
      "p",
      null,
      "What a fooled reward brings about: more suspicious completions (right in spite of a wrong equation, or a letter that was not computed), reward without right answers, one answer or one text for all questions, longer completions, and sampled completions that get better while dev and test do not.",
    ),
    ...runs
      .filter((run) => run.signs.length)
      .flatMap((run) =>
        titled(
          run,
          table(
            "“–” where a sign does not apply",
            [["sign", "left"], ...run.signs.map((sign) => [`${sign.group}, ${count(sign.count)}`, ""])],
            rows.map(([name, cell]) => [name, ...run.signs.map(cell)]),
          ),
        ),
      ),
  );
}

function lengthLines(run) {
  return run.lengths
    .slice(0, 2)
    .filter((group) => group.classes.length)
    .map((group, place) => ({
      label: group.name,
      x: group.classes.map((one) => one.mean),
      y: group.classes.map((one) => one.correct / one.count),
      mean: 1,
      end: "",
      color: style(`--c${place}`),
      dash: place ? undefined : [6, 4],
      interval: (i) =>
        ` (${percent(group.classes[i].interval[0])} to ${percent(group.classes[i].interval[1])}), ${count(group.classes[i].count)} of ${group.classes[i].low} to ${group.classes[i].high} tokens`,
    }));
}

function lengthPlots() {
  runs.forEach((run, place) => {
    const holder = document.getElementById(`length-${place}`),
      lines = lengthLines(run);
    if (!holder || !lines.length) return;
    holder.replaceChildren();
    plot(holder, {
      title: "Right answers by length",
      lines,
      marks: [],
      group: `length-${place}`,
      axis: "x",
      xText: number,
      xLabel: "mean tokens of a class",
      yText: (value) => (value === null ? none : `${+(100 * value).toFixed(1)}`),
      share: true,
    });
  });
}

function lengthSection() {
  if (!runs.some((run) => lengthLines(run).length)) return;
  section(
    "length",
    "Length",
    "Length against correctness",
    make(
      "p",
      null,
      "Completions in classes of about as many, by length: right answers in %, over the mean length. Classes of one length stay together.",
    ),
    make(
      "div",
      { class: "charts" },
      ...runs.map((run, place) =>
        lengthLines(run).length
          ? make(
              "div",
              { class: "chart" },
              several ? make("h4", null, run.name) : null,
              make("div", { class: "plot", id: `length-${place}` }),
            )
          : null,
      ),
    ),
  );
}

function voteSection() {
  if (!data.votes.length) return;
  const shown = ([value, [low, high]]) => `${percent(value)} (${percent(low)} to ${percent(high)})`;
  section(
    "votes",
    "Votes",
    "Majority vote",
    ...data.votes.map((vote) =>
      table(
        `${vote.name}: ${plural(vote.questions, "question")}${vote.left_out ? `, of which ${count(vote.left_out)} were too long to be asked and count as not solved` : ""}; % (95 % interval)`,
        [
          ["samples k", ""],
          ["majority right, maj@k", ""],
          ["any right, pass@k", ""],
        ],
        vote.rows.map(([k, maj, pass]) => [count(k), shown(maj), shown(pass)]),
      ),
    ),
  );
}

function timeSection() {
  if (!runs.some((run) => run.phases.length)) return;
  section(
    "time",
    "Time",
    "Time by phase",
    ...runs.flatMap((run) => {
      const total = run.phases.reduce((sum, phase) => sum + phase.seconds, 0);
      return titled(
        run,
        table(
          `${duration(total)} in all${run.phases.some((phase) => !phase.stage) ? "; “everything else” is the test set, checkpoints, and steps that an interruption undid" : ""}`,
          [
            ["stage", "left"],
            ["phase", "left"],
            ["time", ""],
            ["share %", ""],
          ],
          run.phases.map((phase) => [
            phase.stage || none,
            phase.phase,
            duration(phase.seconds),
            percent(phase.seconds / total),
          ]),
        ),
      );
    }),
  );
}

function settingSection() {
  if (!data.settings.length) return;
  section(
    "settings",
    "Settings",
    "Settings that differ from the defaults",
    table(
      several ? "Rows in which the runs differ are coloured and begin with ≠." : "As JSON.",
      [["setting", "left"], ["default", "wrap"], ...runs.map((run) => [several ? run.name : "this run", "wrap"])],
      data.settings.map((setting) => ({
        kind: setting.differs ? "differs" : null,
        cells: [
          make("code", null, `${setting.differs ? "≠ " : ""}${setting.key}`),
          ...[setting.default, ...setting.values].map((value) => make("code", null, value)),
        ],
      })),
    ),
  );
}

function madeSection() {
  const facts = (pairs) =>
    make(
      "dl",
      null,
      ...pairs
        .filter(([, value]) => value !== null && value !== undefined && value !== "")
        .flatMap(([name, value]) => [make("dt", null, name), make("dd", null, value)]),
    );
  const hardware = (own) =>
    own
      ? `${plural(own.devices, "device")} (${own.device}), ${Object.entries(own.mesh)
          .map(([name, size]) => `${name} ${size}`)
          .join(
            ", ",
          )}; ${plural(own.processes, "process", "processes")}; ${own.host}, ${plural(own.cores, "core")}${own.memory_gb ? `, ${number(own.memory_gb)} GB` : ""}`
      : null;
  section(
    "made",
    "Made with",
    "Made with",
    ...runs.flatMap((run) => {
      const info = run.info;
      return titled(
        run,
        facts([
          ["command", info.command ? make("code", null, info.command) : null],
          ["folder", make("code", null, run.folder)],
          ["state", run.status],
          ["commit", info.commit ? `${info.commit}${info.dirty ? ", with changes" : ""}` : null],
          ["python", info.python],
          ["platform", info.platform],
          [
            "versions",
            Object.entries(info.versions || {})
              .filter(([, version]) => version)
              .map(([name, version]) => `${name} ${version}`)
              .join(", "),
          ],
          ...run.attempts.flatMap((attempt, place) => [
            [
              run.attempts.length > 1 ? `work ${place + 1}` : "at work",
              `${attempt.started} to ${attempt.ended || "(no end recorded: at work, or killed)"}`,
            ],
            ["hardware", hardware(attempt.hardware)],
          ]),
          ...run.changes.map((change) => [
            `after step ${count(change.after_step)}`,
            Object.entries(change.settings)
              .map(([key, [old, now]]) => `${key} from ${JSON.stringify(old)} to ${JSON.stringify(now)}`)
              .join(", "),
          ]),
        ]),
      );
    }),
    make("p", { class: "soft" }, `Written by reft_jax ${data.version} on ${data.made}. Curves by uPlot (MIT licence).`),
  );
}
