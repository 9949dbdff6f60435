"""The report in headless Chromium, from the disk: it loads without an error, and what can be clicked does its work."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from reft_jax.config import Config
from reft_jax.report.folder import read_run
from reft_jax.report.page import report_page
from reft_jax.report.results import results
from tests.report.made_run import MODELS, lines, make_run
from tests.report.test_report import HOSTILE

pytestmark = pytest.mark.ci
sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install -e '.[browser]'")
SHOTS = os.environ.get("REFT_SCREENSHOTS")
"""A folder for pictures of the pages, to be looked at."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[sync_api.Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    installed = next((path for name in names if (path := shutil.which(name))), None)
    with sync_api.sync_playwright() as playwright:
        if installed is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip(f"no browser here: none of {', '.join(names)}, nor what `playwright install chromium` brings")
        # Root has no sandbox of Chromium's; the page is of our own making.
        with playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"]) as browser:
            yield browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / f"seed{seed}", seed=seed) for seed in (1, 2)] + [
        make_run(folder / "strong_kl", settings={"rl.kl_coef": 0.5}, finished=False),
        make_run(folder / "hostile", text=HOSTILE, ask=HOSTILE),
    ]


@pytest.fixture
def opened(chromium, tmp_path):
    """Opens a page about some runs from the disk; fails where it says anything in the console, or asks the network."""
    contexts, told = [], []

    def open_page(paths, width=1280, scheme="light"):
        out = tmp_path / "page.html"
        out.write_text(report_page([read_run(path, path.name) for path in paths]), encoding="utf-8")
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on(
            "request",
            lambda request: told.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
        )
        page.goto(out.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert told == []


def test_the_final_table_is_there_and_the_curves_are_drawn(opened, runs):
    page = opened(runs[:1])
    table = page.locator("#results table")
    for row in results(read_run(runs[0], "r")):
        cells = table.locator("tr", has_text=row.model).first.locator("th, td").all_inner_texts()
        assert cells[1] == f"{100 * row.accuracy:.1f}"
        if row.pairing:
            assert cells[5:7] == [str(row.pairing.gained), str(row.pairing.lost)]
    titles = page.locator(".chart h4").all_inner_texts()
    for title in ("Accuracy on dev", "Reward", "KL to the reference", "Entropy", "Gradient norm", "Explained variance"):
        assert title in titles
    inks = page.evaluate(
        """() => [...document.querySelectorAll(".chart canvas")].map((canvas) => {
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(new Uint32Array(pixels.buffer)).size;
        })"""
    )
    assert len(inks) == page.locator(".chart").count()
    assert min(inks) > 2


def test_hover_and_arrow_keys_read_values(opened, runs):
    page = opened(runs[:1])
    chart = page.locator(".chart", has=page.get_by_role("heading", name="KL to the reference"))
    legend = chart.locator(".u-legend")
    chart.scroll_into_view_if_needed()
    chart.locator(".plot").focus()
    page.keyboard.press("Home")
    assert legend.locator(".u-value").all_inner_texts() == ["1", "0.1"], "iteration and KL"
    page.keyboard.press("ArrowRight")
    assert legend.locator(".u-value").all_inner_texts() == ["2", "0.2"]
    page.keyboard.press("End")
    assert legend.locator(".u-value").all_inner_texts() == ["20", "2"]
    box = chart.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 50)
    assert legend.locator(".u-value").all_inner_texts() == ["1", "0.1"]


def found(page) -> int:
    return int(page.locator("#found").inner_text().split()[0].replace(",", ""))


def test_filters_show_what_the_records_have(opened, runs):
    page, run = opened(runs[:1]), runs[0]
    records = [*lines(run, "evaluations"), *({**r, "split": "train"} for r in lines(run, "rollouts"))]
    questions = lambda test: len({(r["split"], r["id"]) for r in records if test(r)})
    assert found(page) == questions(lambda r: True)
    page.locator("[name=split]").select_option("test")
    assert found(page) == questions(lambda r: r["split"] == "test")
    page.locator("[name=cause]").select_option("error: NameError")
    is_name_error = lambda r: r.get("detail", "").startswith("NameError")
    assert found(page) == questions(lambda r: r["split"] == "test" and is_name_error(r))
    assert "NameError: name 'x' is not defined" in page.locator(".question").first.inner_text()
    page.locator("[name=at]").select_option("after")
    assert found(page) == questions(lambda r: r.get("model") == "rl_best" and is_name_error(r))
    page.get_by_role("button", name="Clear").click()
    assert found(page) == questions(lambda r: True)
    right = {
        name: {r["id"] for r in records if r.get("model") == name and r["outcome"] == "correct"} for name in MODELS
    }
    page.locator("[name=split]").select_option("test")
    for change, expected in (
        ("gained", right["rl_best"] - right["warmup"]),
        ("lost", right["warmup"] - right["rl_best"]),
    ):
        page.locator("[name=change]").select_option(change)
        assert found(page) == len(expected)
    page.locator("[name=change]").select_option("")
    page.locator("[name=suspect]").check()
    page.locator("[name=low]").fill("10")
    page.locator("[name=high]").fill("20")
    suspect = lambda r: r["split"] == "test" and r["suspicious"] is True and 10 <= r["tokens"] <= 20
    assert found(page) == questions(suspect)
    page.reload()
    assert found(page) == questions(suspect), "filters are kept where a live page loads itself again"


def test_search_finds_and_marks_questions_and_completions(opened, runs):
    page, run = opened(runs[:1]), runs[0]
    needle = lines(run, "evaluations")[5]["completion"].partition("# ")[2]
    page.locator("[name=q]").fill(needle)
    assert found(page) == 1
    assert page.locator("mark").first.inner_text() == needle
    page.locator("[name=q]").fill("how many are 7 and TEST")
    assert found(page) == 1
    page.locator("[name=q]").fill("nowhere to be found")
    assert found(page) == 0


def test_tokens_are_coloured_and_their_numbers_read(opened, runs):
    page, run = opened(runs[:1]), runs[0]
    page.locator("[name=scored]").check()
    scored = [record for record in lines(run, "rollouts") if "per_token" in record]
    assert found(page) == len({record["id"] for record in scored})
    box = page.locator(".tokens").first
    text = box.text_content()
    own = next(
        r["per_token"]
        for r in scored
        if text == r["per_token"]["head"] + "".join(r["per_token"]["text"]).replace("\n", "↵\n")
    )
    tokens, numbers = box.locator(".token"), box.locator("xpath=..").locator(".numbers")
    assert tokens.count() == len(own["text"])
    for name, label in (("advantage", "advantage"), ("value", "value"), ("log_ratio", "KL")):
        page.get_by_label(label, exact=True).check()
        values = [None if value == "nan" else value for value in own[name]]
        every = [value for r in scored for value in r["per_token"][name] if value != "nan"]
        full = sorted(map(abs, every))[int(0.95 * (len(every) - 1))]
        for kind, value in zip(tokens.evaluate_all("all => all.map(token => token.className)"), values, strict=True):
            faint = value is None or abs(value) < 0.05 * full
            assert kind.strip() == (
                "token"
                if faint
                else f"token {'plus' if value > 0 else 'minus'}{min(4, int(4 * abs(value) / full) + 1)}"
            )
    box.focus()
    page.keyboard.press("End")
    assert numbers.inner_text().startswith(f"Token {len(own['text'])} of {len(own['text'])}, “<end>”: advantage ")
    assert numbers.inner_text().endswith("KL \u2013"), "what is no number is not shown as one"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    shown = numbers.inner_text().replace("\u2212", "-")
    assert shown.startswith(f"Token 2 of {len(own['text'])}")
    assert float(re.search(r"advantage ([-\d.e]+),", shown)[1]) == pytest.approx(own["advantage"][1], rel=0.01)
    tokens.nth(3).hover()
    assert numbers.inner_text().startswith("Token 4 of ")
    page.locator("[name=q]").fill(own["head"][:3])
    assert page.locator(".question mark").count() > 0, "a text that is searched for is marked"


def test_a_page_without_scores_of_tokens_has_no_choice_of_them(opened, tmp_path):
    path = make_run(tmp_path / "old")
    records = [{k: v for k, v in record.items() if k != "per_token"} for record in lines(path, "rollouts")]
    (path / "rollouts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = opened([path])
    assert found(page) > 0
    assert page.locator(".token-choice, [name=scored], .token").count() == 0


def test_ten_questions_are_shown_and_more_on_demand(opened, runs):
    page = opened(runs[:1])
    assert page.locator(".question").count() == 10
    page.get_by_role("button", name="Show 10 more").click()
    assert page.locator(".question").count() == 20


def test_a_cause_leads_to_its_completions(opened, runs):
    page = opened(runs[:1])
    page.locator("#failures").get_by_role("button", name="timeout").click()
    assert page.locator("[name=cause]").input_value() == "timeout"
    assert "✗ timeout" in page.locator(".question").first.inner_text()
    page.locator("#failures details").first.locator("summary").click()
    page.locator("#failures .completion").first.wait_for()  # they are made once the browser has opened it


def test_hostile_texts_are_texts(opened, runs):
    page = opened(runs[3:])
    assert page.title() == "hostile · reft_jax report"
    assert page.locator("script").count() == 3
    assert page.locator("img").count() == 0
    page.locator("[name=q]").fill("</script><script>")
    assert found(page) > 0
    assert HOSTILE.replace("\u2028", "") in page.locator(".question pre").first.text_content().replace("\u2028", "")


def test_several_runs_are_overlaid_and_the_runs_of_a_method_have_a_mean(opened, runs):
    page = opened(runs[:3])
    labels = page.locator(".chart", has=page.get_by_role("heading", name="Reward", exact=True)).locator(
        ".u-legend .u-label"
    )
    said = [label for label in labels.all_inner_texts() if label]
    assert said[0] == "iteration"
    assert f"ReFT (PPO), rl.kl_coef {Config().rl.kl_coef}: mean of 2" in said
    assert "strong_kl" in said
    assert page.locator("#results tr.mean").count() == len(MODELS)
    assert page.locator("#settings tr.differs", has_text="rl.kl_coef").count() == 1
    page.locator("[name=run]").select_option("2")
    assert "strong_kl" in page.locator(".question").first.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window_and_texts_have_contrast(opened, runs, width, scheme):
    """Contrast of 4.5 and more, as WCAG AA asks, of every text that is on the page."""
    for name, paths in (("one", runs[:1]), ("several", runs[:3])):
        page = opened(paths, width, scheme)
        page.locator("#failures details").first.locator("summary").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CONTRAST) == []
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/{name}-{width}-{scheme}.png", full_page=True)
        page.locator("[name=scored]").check()
        assert page.locator(".tokens").first.is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CONTRAST) == []
        if SHOTS:
            page.locator("#completions").screenshot(path=f"{SHOTS}/{name}-tokens-{width}-{scheme}.png")


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] > 0.5) return color;
    }
    return [255, 255, 255];
  };
  const low = new Set();
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility()) continue;
    if (["SCRIPT", "NOSCRIPT", "OPTION"].includes(element.tagName)) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.add(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
  }
  return [...low];
}"""
