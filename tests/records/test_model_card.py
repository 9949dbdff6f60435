"""The card of an export: read by a Markdown parser and by the Hub's own reader, its numbers and its code tried."""

import contextlib
import dataclasses
import io
import json
import os
import shlex
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from reft_jax.config import Config, DataConfig, TemplateConfig, load_config
from reft_jax.data.prompts import generation_prompt
from reft_jax.data.tokenizers import load_tokenizer
from reft_jax.export import export
from reft_jax.problem import Problem
from reft_jax.records.model_card import EXAMPLE, model_card
from tests.runs import read


def blocks(card: str) -> list[tuple[str, str]]:
    """Language and content of each block of code."""
    text = card.split("\n---\n", 1)[1]
    return [(token.info, token.content) for token in MarkdownIt().parse(text) if token.type == "fence"]


def run_code(folder: Path) -> str:
    """What the card's code prints, run in the export's folder."""
    (code,) = (content for language, content in blocks((folder / "README.md").read_text()) if language == "python")
    assert len(code.splitlines()) <= 14
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    return printed.getvalue()


def row(label: str, split: str, accuracy: float, interval: list[float]) -> str:
    low, high = interval
    return f"| {label} | {split} | {100 * accuracy:.1f} | {100 * low:.1f} to {100 * high:.1f} |"


def write(config: Config, folder: Path, name: str = "rl_best", base: str = "", **other) -> str:
    prompt = generation_prompt(Problem("", EXAMPLE, ""), config.data.templates, config.data.cot)
    given = {"kind": "model", "revision": "main", "prompt": prompt, "tokenizer": "AutoTokenizer", **other}
    return model_card(config, folder / "checkpoints" / name, base=base, **given)


def test_the_card_of_a_finished_run(finished, tmp_path):
    run_dir, _ = finished
    export(run_dir / "checkpoints/rl_best", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert ModelCard(card).data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reft", "ppo"],
    }
    summary = json.loads((run_dir / "summary.json").read_text())
    for name, label in (
        ("rl_best", "**reinforcement, best on dev**"),
        ("warmup", "warm-up"),
        ("sft_best", "supervised fine-tuning, best on dev"),
    ):
        assert row(label, "test", summary[name]["accuracy"], summary[name]["interval"]) in card
    step = summary["rl_best"]["step"]
    (dev,) = (r for r in read(run_dir, "metrics") if r["step"] == step and "eval/accuracy" in r)
    interval = [dev["eval/interval_low"], dev["eval/interval_high"]]
    assert row("**reinforcement, best on dev**", "dev", dev["eval/accuracy"], interval) in card
    assert f"trained on {summary['rl_best']['examples']:,} sequences" in card
    assert str(tmp_path) not in card
    assert str(run_dir) not in card
    info = json.loads((run_dir / "run.json").read_text())
    assert f"jax {info['versions']['jax']}" in card
    prompt = f'Question:\n{EXAMPLE}\nAnswer reasoning:\ndef solution():\n    """{EXAMPLE}"""\n'
    assert ("", prompt) in blocks(card)


def test_the_code_of_a_card_runs(finished, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    export(finished[0] / "checkpoints/warmup", tmp_path / "out")
    tokenizer = load_tokenizer("embedded", "")
    assert tokenizer.unk_token_id not in tokenizer(EXAMPLE)["input_ids"]
    with torch.no_grad():
        assert run_code(tmp_path / "out").strip()
    config = load_config(["--config", str(finished[0] / "config.yaml")])
    stopping = dataclasses.replace(config, generation=dataclasses.replace(config.generation, stop=("\n\n",)))
    (code,) = (text for kind, text in blocks(write(stopping, finished[0], "warmup")) if kind == "python")
    assert "max_new_tokens=20, stop_strings=['\\n\\n'], tokenizer=tokenizer)" in code  # as transformers wants it


@pytest.mark.parametrize(("name", "epoch"), [("warmup", 9), ("sft", 11)])
def test_models_that_were_not_chosen_have_the_figures_of_their_epoch(name, epoch, finished):
    run_dir, _ = finished
    card = write(load_config(["--config", str(run_dir / "config.yaml")]), run_dir, name)
    (dev,) = (r for r in read(run_dir, "metrics") if r["step"] == 6 * epoch and "eval/accuracy" in r)
    assert f"| dev | {100 * dev['eval/accuracy']:.1f} |" in card
    assert "chosen on dev" not in card.split("## Accuracy")[1]
    assert "tags:\n- reft\n- sft\n" in card


def test_what_is_not_known_is_said(copied):
    run_dir = copied
    config = load_config(["--config", str(run_dir / "config.yaml")])
    (run_dir / "summary.json").unlink()
    (run_dir / "run.json").unlink()
    card = write(config, run_dir)
    for words in (
        "The run is not finished, so that nothing was read on test.",
        "Its command is unknown.",
        "Commit: unknown. Versions: unknown; Python unknown.",
    ):
        assert words in card
    (run_dir / "run.json").write_text(json.dumps({"changes": [{"after_step": 3, "settings": {"rl.epochs": [1, 2]}}]}))
    assert "After step 3 the run went on with rl.epochs from 1 to 2; the settings above are the last ones" in write(
        config, run_dir
    )
    (run_dir / "run.json").unlink()
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "summary.json").write_text(json.dumps({"collapse": "reward of `x` | fell"}))
    card = write(config, run_dir)
    assert "This model was not read on test. Its accuracy on dev is unknown." in card
    assert "Reinforcement ended early: reward of \\`x\\` \\| fell." in card


def test_a_card_names_what_is_public_and_no_folder(tmp_path):
    """Hub ids as they are; of paths the last part, in the command too."""
    settings = {
        "run_dir": "/home/someone/run",
        "model": {"path": "owner/name", "revision": "v2", "lora": {"path": "/home/someone/adapter"}},
        "data": {
            "train": {"kind": "jsonl", "path": "/home/someone/private/train.jsonl"},
            "test": {"kind": "hub", "path": "openai/gsm8k", "name": "main"},
        },
    }
    config = load_config(["--config", yaml.safe_dump(settings)])
    command = "python -m reft_jax.train --config '/home/someone/my file.yaml' --model.path=~/models/x --rl.epochs 3"
    command = shlex.join([*shlex.split(command), "--reward_model.samples", '["/home/someone/a.jsonl"]', "/", "a/b"])
    (tmp_path / "run.json").write_text(json.dumps({"command": command, "commit": "c" * 40, "dirty": True}))
    card = write(config, tmp_path, base="owner/name", revision="v2")
    assert "someone" not in card
    assert "~" not in card
    assert ModelCard(card).data.base_model == "owner/name"
    for words in (
        "base: `owner/name`, revision `v2`",
        "adapter merged into it at the start: `adapter`",
        "train: `jsonl`, `train.jsonl`",
        "test: `hub`, `openai/gsm8k` (main, train)",
        f"Commit: `{'c' * 40}` with changes.",
    ):
        assert words in card
    (shown,) = (content for language, content in blocks(card) if language == "sh")
    expected = "python -m reft_jax.train --config 'my file.yaml' --model.path=x --rl.epochs 3 --reward_model.samples"
    assert shown == expected + """ '["a.jsonl"]' / a/b\n"""
    local = write(config, tmp_path, base=str(tmp_path))
    assert "base_model" not in ModelCard(local).data.to_dict()
    assert f"# {tmp_path.name}".replace("_", "\\_") in local


ODD = (
    "`",
    "```",
    "````",
    "~~~",
    "---",
    "\n",
    "\n\n",
    "    ",
    "#",
    "|",
    "{{",
    "}}",
    "{question}",
    "</pre>",
    '"""',
    "é",
    "- a",
)
TEXT = st.lists(st.sampled_from(ODD), max_size=6).map("".join)


@given(st.builds(TemplateConfig, TEXT, TEXT, TEXT, TEXT), st.sampled_from(["program", "text"]), TEXT)
def test_odd_text_stays_where_it_belongs(templates, cot, odd):
    data = dataclasses.replace(DataConfig(), templates=templates, cot=cot)
    model = dataclasses.replace(Config().model, path=odd + "/x" + odd.replace("/", ""))
    config = dataclasses.replace(Config(), data=data, model=model)
    card = write(config, Path("no/run"), base=model.path)
    prompt = generation_prompt(Problem("", EXAMPLE, ""), templates, cot)
    found = blocks(card)
    assert found[0] == ("", prompt if prompt.endswith("\n") else prompt + "\n")
    assert [language for language, _ in found] == ["", "python"]
    titles = [t for t in MarkdownIt().parse(card.split("\n---\n", 1)[1]) if t.type == "heading_open"]
    assert len(titles) == 6
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "transformers"
    assert os.linesep.join(["", "## Prompt", ""]) in card
