"""What the documents say of settings and metrics is what the code says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import generate, surface
from reft_jax.config import load_config

ROOT = Path(__file__).parents[2]
SETTINGS = (ROOT / "docs" / "settings.md").read_text()


def test_the_committed_documents_are_those_that_the_code_makes():
    blocked = dict.fromkeys(("jax", "jaxlib", "flax", "numpy", "transformers"))
    code = f"import sys\nsys.modules.update({blocked!r})\nfrom docs.generate import main\nsys.exit(main(['--check']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_document_is_told_and_mended_and_its_prose_kept(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    committed = (ROOT / "docs" / "metrics.md").read_text()
    stale = re.sub(r"^\| `(sft/loss|run/examples)` .*\n", "", committed, flags=re.MULTILINE)
    (tmp_path / "metrics.md").write_text(stale)
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().out.count("is out of date") == 2 + len(surface.pages())
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.md"]
    assert (tmp_path / "metrics.md").read_text() == stale
    assert generate.main([]) == 0
    assert (tmp_path / "metrics.md").read_text() == committed
    assert (tmp_path / "settings.md").read_text() == SETTINGS
    for name, page in surface.pages().items():
        assert (tmp_path / name).read_text() == page
    assert generate.main(["--check"]) == 0


def test_a_table_that_cannot_be_found_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    (tmp_path / "metrics.md").write_text("# Metrics\n")
    with pytest.raises(ValueError, match=r"docs/metrics\.md has no table that begins with '\| name \| unit"):
        generate.main([])


def test_settings_are_those_that_the_help_prints(capsys):
    """Keys, defaults and texts, by the other way from the dataclasses to a reader."""
    with pytest.raises(SystemExit):
        load_config(["--help-all"])
    squeeze = lambda text: "".join(text.split())
    parts = re.split(r"^  --", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    helps = {part.split()[0]: squeeze(part) for part in parts if "(type:" in part or "default:" in part}
    rows = re.findall(r"^\| `(\w[\w.]*)` \| (.+?) \| `(.*)` \| (.+) \|$", SETTINGS, flags=re.MULTILINE)
    assert len(rows) == len(helps) > 190
    for key, kind, default, text in rows:
        assert squeeze(text) in helps[key]
        value = json.loads(default)
        shown = tuple(value) if isinstance(value, list) else value
        if "\n" not in str(shown):
            assert squeeze(f"default: {shown})") in helps[key], (key, helps[key])
        if "`" not in kind and kind not in ("bool", "str"):
            assert squeeze(f"(type: {kind}, default") in helps[key]
