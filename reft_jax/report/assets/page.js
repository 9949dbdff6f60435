// Puts the sections together.

function draw() {
  for (const [made] of plots) made.destroy();
  plots.length = 0;
  curves();
  lengthPlots();
}

document
  .querySelector("#top")
  .append(
    make("h1", null, several ? `${runs.length} runs` : runs[0].name),
    make("p", { class: "soft" }, several ? `Written ${data.made}.` : `${runs[0].status}. Written ${data.made}.`),
    ...(several ? [make("ul", null, ...runs.map((run) => make("li", null, `${run.name}: ${run.status}`)))] : []),
  );
section("results", "Results", "Results", several ? null : headline(runs[0]), resultTable());
curveSection();
if (browser.questions.length) {
  completionSection();
  failureSection();
}
signSection();
lengthSection();
voteSection();
timeSection();
settingSection();
madeSection();
document
  .querySelector("nav")
  .append(make("ul", null, ...sections.map(([id, title]) => make("li", null, make("a", { href: `#${id}` }, title)))));
draw();

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
let waiting = 0;
addEventListener("resize", () => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => {
    for (const [made, holder] of plots) made.setSize({ width: holder.clientWidth, height: 230 });
  });
});
