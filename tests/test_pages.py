"""README and docs/: each block of code is run, or checked as far as that is cheap; messages, links and sizes hold.

A comment before a block says what it is where its language does not:

    <!-- run -->               bash: its commands are run here
    <!-- output of: ... -->    text: what a command printed; compared where the command is run here
    <!-- formula -->           text: nothing that is run or printed, such as a drawing
    <!-- rows: kind=jsonl -->  json: a file of problems, read as such
    <!-- not run: why -->      python: too long to run here

All other bash is read by the commands' own parsers, all other Python is run, all YAML is read as settings.
"""

import contextlib
import functools
import importlib
import io
import itertools
import re
import shlex
import statistics
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from markdown_it import MarkdownIt

import reft_jax
from reft_jax import cli
from reft_jax.config import CommandParser, SettingsParser, SourceConfig, parse_config
from reft_jax.config.load import config_parser
from reft_jax.data.readers import read_problems

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "launch/README.md", *ROOT.glob("docs/**/*.md"))
}
ELSEWHERE = {"docker", "export", "gcloud", "hf", "kubectl", "sbatch", "sed", "sky"}
"""Commands of others, on machines that tests do not have."""

COMMENT = re.compile(r"<!-- (run|formula|output of|rows|not run)(?:: (.+))? -->")
KINDS = {
    "bash": {"", "run"},
    "python": {"", "not run"},
    "{.python}": {"not run"},  # a file that is put in when the site is built
    "yaml": {""},
    "json": {"rows"},
    "text": {"output of", "formula"},
}
"""By language what the comment before a block may say; every block has one of these languages."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    kind: str
    about: str
    content: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> Iterator[Block]:
    tokens = MarkdownIt().parse(PAGES[page].read_text(encoding="utf-8"))
    for before, token in zip([None, *tokens], tokens):
        if token.type in ("fence", "code_block"):
            comment = before and before.type == "html_block" and COMMENT.fullmatch(before.content.strip())
            kind, about = (comment[1], comment[2] or "") if comment else ("", "")
            yield Block(page, token.map[0] + 1, token.info.strip(), kind, about, token.content)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(language: str, *kinds: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language and block.kind in kinds]


def test_every_block_is_of_a_kind_that_is_run_or_checked():
    unknown = [str(block) for block in BLOCKS if block.kind not in KINDS.get(block.language, ())]
    assert not unknown, "see the head of tests/test_pages.py"
    assert len(BLOCKS) > 80


# Shell


def lines_of(block: Block) -> Iterator[list[str]]:
    """The words of each command of a block, its variables filled in, without comments and what a shell is fed."""
    text = re.sub(r"\\\n\s*", " ", block.content)
    text = re.sub(r"<<(\w+)\n.*?\n\1\n", "\n", text, flags=re.DOTALL)
    for line in re.sub(r"'[^'\n]*\n[^']*'", "''", text).splitlines():
        for name, value in variables(block.page).items():
            line = line.replace(f"${name}", value)
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|")
        lexer.whitespace_split = True
        for joined, words in itertools.groupby(lexer, lambda word: set(word) <= set("&|")):
            found = list(words)
            if not joined and not all(re.match(r"\w+=", word) for word in found):
                yield found


def variables(page: str) -> dict[str, str]:
    """What a page's blocks set, in order, each with those before it filled in."""
    found: dict[str, str] = {}
    for block in blocks_of(page):
        for name, quoted, bare in re.findall(r'^(\w+)=(?:"(.*)"|(\S+))$', block.content, re.M):
            value = quoted or bare
            for other, its in found.items():
                value = value.replace(f"${other}", its)
            found[name] = value
    return found


class Read(BaseException):
    """A parser has read its command line; no Exception, which a command would report."""


@pytest.fixture
def parsers_only(monkeypatch, tmp_path):
    """Commands end when their arguments have been read, in a folder with the files that the pages' commands name."""
    for kind in (SettingsParser, CommandParser):
        parse = kind.parse_args

        def read(self, *args, parse=parse, **named):
            parse(self, *args, **named)
            raise Read

        monkeypatch.setattr(kind, "parse_args", read)
    monkeypatch.setattr(importlib.import_module("reft_jax.reward_model.__main__"), "run_of", lambda *_, **__: tmp_path)
    monkeypatch.chdir(tmp_path)
    quickstart = f"config: [{ROOT}/configs/quickstart.yaml]\n"
    for name in ("config.yaml", "mine.yaml", "base.yaml", "my_task.yaml", "mine/config.yaml", "runs/mine/config.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(quickstart)
    (tmp_path / "model").mkdir()


def refusal_of(line: list[str]) -> str:
    """What a command of the package says against its arguments; nothing where it takes them."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(line)
        except Read:
            return ""
        except SystemExit as end:
            code = end.code
    return said.getvalue() or f"exit {code}" if code else ""


def fault(words: list[str]) -> str:
    """What is wrong with a command of a page."""
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    program, *rest = words
    module = rest[1] if program == "python" and rest[:1] == ["-m"] else ""
    if program == "reft" or module.startswith("reft_jax."):
        line = rest if program == "reft" else [module.removeprefix("reft_jax."), *rest[2:]]
        return refusal_of(line)
    if module == "pytest":
        return "" if (ROOT / rest[2]).exists() else f"no {rest[2]}"
    if module:
        path = ROOT / module.replace(".", "/")
        return "" if path.is_dir() or path.with_suffix(".py").exists() else f"no module {module}"
    if program == "python":
        made = {block.content.partition("\n")[0].removeprefix("# ").partition(":")[0] for block in of("python", "")}
        return "" if (ROOT / rest[0]).exists() or rest[0] in made else f"no {rest[0]}"
    if program == "make":
        targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
        return "" if rest[0] in targets else f"no target {rest[0]}"
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = re.search(r"\[(\w+)\]", rest[-1])
        return "" if not asked or asked[1] in extras else f"no extra {asked[1]}"
    if program.startswith("launch/"):
        return "" if (ROOT / program).exists() else f"no {program}"
    return "" if program in ELSEWHERE else f"{program} is no command that is known here"


@pytest.mark.ci
@pytest.mark.parametrize("page", [page for page in PAGES if any(b.page == page for b in of("bash", "", "run"))])
def test_every_command_of_a_page_is_taken_by_its_parser(page, parsers_only):
    faults = [
        f"{block}: {shlex.join(words)}\n{told}"
        for block in of("bash", "", "run")
        if block.page == page
        for words in lines_of(block)
        if (told := fault(words))
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.ci
@pytest.mark.parametrize(
    "line", ["train --config quickstart --rl.kl_coeff 1", "sample a b", "evalute", "init", "report r --outt x"]
)
def test_a_command_that_is_wrong_is_found(line, parsers_only):
    assert refusal_of(line.split())


@pytest.mark.ci
def test_what_is_run_prints_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reft"])
    printed = {}
    for words in {tuple(words) for block in of("bash", "run") for words in lines_of(block)}:
        assert words[0] == "reft"
        assert cli.main(list(words[1:])) == 0
        printed[shlex.join(words)] = capsys.readouterr().out
    compared = [block for block in of("text", "output of") if block.about in printed]
    assert compared
    for block in compared:
        said = re.sub(r"(\S*python|python) -m reft_jax\.", "reft ", printed[block.about]).replace(f"{tmp_path}/", "")
        assert squeezed(block.content) == squeezed(said), str(block)


def squeezed(text: str) -> list[str]:
    return text.split()


# Python, YAML, rows


PYTHON = sorted({block.page for block in of("python", "")})


@pytest.mark.parametrize("page", [pytest.param(x, marks=[pytest.mark.ci] * ("custom_loop" in x)) for x in PYTHON])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """The blocks of a page one after the other, as in a notebook."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN_DIR").mkdir()
    (tmp_path / "RUN_DIR/metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    names: dict[str, object] = {"__name__": "page"}
    for block in of("python", ""):
        if block.page == page:
            exec(compile(block.content, str(block), "exec"), names)


parser = functools.cache(lambda: config_parser("page", ""))


@pytest.mark.ci
@pytest.mark.parametrize("block", of("yaml", ""), ids=str)
def test_yaml_is_settings(block, tmp_path):
    (tmp_path / "page.yaml").write_text(block.content)
    parse_config(parser(), ["--config", str(tmp_path / "page.yaml")])


@pytest.mark.parametrize("block", of("json", "rows"), ids=str)
def test_rows_are_read_as_their_kind(block, tmp_path):
    kind = block.about.removeprefix("kind=")
    path = tmp_path / ("rows.json" if kind == "reft_json" else "rows.jsonl")
    path.write_text(block.content)
    problems = read_problems(SourceConfig(kind=kind, path=str(path)))
    assert len(problems) == block.content.count('"question"')


# Messages


def texts_of_the_package() -> str:
    """Its sources, with texts that go over several lines made one."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "reft_jax").rglob("*.py"))
    return re.sub(r'"\s*f?"', "", "\n".join(sources)).replace("`", "")


def test_the_messages_of_troubleshooting_are_the_packages_own():
    """What is between their ellipses stands in its sources."""
    page = PAGES["docs/howto/troubleshooting.md"].read_text()
    messages = re.findall(r"^`(.+)`\n:   ", page, re.M)
    assert len(messages) > 25
    known = texts_of_the_package()
    for message in messages:
        pieces = [piece for piece in (part.strip(" ,;:.") for part in re.split(r"\.\.\.|: ", message)) if piece]
        assert max(map(len, pieces)) >= 6, message  # not all of it is left open
        assert all(piece in known for piece in pieces), (message, [piece for piece in pieces if piece not in known])


# README and links


def prose(text: str) -> list[str]:
    """The sentences of a page, without code, tables, headings and pictures."""
    text = re.sub(r"```.*?```|<!--.*?-->|!\[.*?\]\(.*?\)", "", text, flags=re.DOTALL)
    text = re.sub(r"^(#.*|\|.*)$", "", text, flags=re.M)
    text = re.sub(r"\[(.+?)\]\(.+?\)", r"\1", text, flags=re.DOTALL)
    paragraphs = re.split(r"\n\s*\n|\n- ", text)
    sentences = [part for each in paragraphs for part in re.split(r"(?<=[.!?])\**\s+|: ", " ".join(each.split()))]
    return [sentence for sentence in sentences if len(sentence.split()) > 2]


def test_the_readme_is_short():
    text = PAGES["README.md"].read_text()
    assert len(text.splitlines()) <= 120
    assert statistics.mean(len(sentence.split()) for sentence in prose(text)) < 18
    assert all(target in text for target in ("make quickstart", "make test"))


def test_who_cites_names_this_version_and_who_reports_is_asked_for_the_run():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == reft_jax.__version__
    assert cited["license"] == "Apache-2.0"
    assert cited["references"][0]["url"].endswith("2401.08967")
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"):
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys()
        assert "run.json" in path.read_text()


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("docs/reference/api/")])
def test_links_lead_somewhere(page):
    """Files and headings; `make docs` says the same of the site, where mkdocs is installed."""
    text = re.sub(r"```.*?```|`[^`\n]+`", "", PAGES[page].read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (PAGES[page].parent / name).resolve() if name else PAGES[page]
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), target


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    if included := re.fullmatch(r'--8<-- "(.+)"\s*', text):
        text = (ROOT / included[1]).read_text()
    slug = lambda head: re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-")
    return {slug(head) for head in re.findall(r"^#+ (.+)$", text, re.M)} | set(re.findall(r'<a id="(.+?)"', text))
