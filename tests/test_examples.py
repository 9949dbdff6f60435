"""examples/: what stands there runs, and learns."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from docs.own_model import write_model

ROOT = Path(__file__).parents[1]
TINY = (
    "--pretrain.epochs 0 --data.train.limit 60 --data.test.limit 20 --sft.schedule_epochs 1 --sft.warmup_epoch 1 "
    "--sft.stop_epoch 1 --sft.evaluate_every 1 --rl.epochs 1 --rl.rollout_batch_size 32 --model.decoder.num_layers 1"
)


@pytest.fixture
def loop():
    return runpy.run_path(str(ROOT / "examples/loop.py"))["main"]


@pytest.mark.ci
def test_the_loop_fits_a_page_and_raises_its_reward(loop):
    assert len((ROOT / "examples/loop.py").read_text().splitlines()) < 100
    means = loop()
    assert 0.2 < sum(means[:2]) / 2 < 0.6, "about half of the annotations count down"
    assert sum(means[-3:]) / 3 > sum(means[:2]) / 2 + 0.15


@pytest.mark.ci
def test_the_loop_takes_a_model_of_ones_own(loop, tmp_path):
    write_model(tmp_path / "model", ["count up from 3 : 4 5 6 7"])
    (mean,) = loop(str(tmp_path / "model"), 1, 1)
    assert 0 <= mean <= 1


@pytest.mark.ci
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path, monkeypatch):
    """With a smaller run in place of its own; the kernel is a process of its own."""
    nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[notebook]'")
    client = pytest.importorskip("nbclient", reason="pip install -e '.[notebook]'").NotebookClient
    pytest.importorskip("ipykernel", reason="pip install -e '.[notebook]'")
    pytest.importorskip("matplotlib", reason="pip install -e '.[notebook]'")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{':'.join(sys.path)}")
    notebook = nbformat.read(ROOT / "examples/reft.ipynb", as_version=4)
    (given,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    given.source += f"\nshorter = {TINY!r}"
    client(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", ()))
    assert "exit code 0" in printed
    assert re.search(r"rl_best +\d+\.\d % of test right", printed)
    assert "1.0  correct" in printed
    assert "0.1  wrong" in printed
    assert any("image/png" in out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", ()))


def test_the_notebook_is_one_that_ran():
    """It is committed with its outputs, and without errors among them."""
    nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[notebook]'")
    notebook = nbformat.read(ROOT / "examples/reft.ipynb", as_version=4)
    nbformat.validate(notebook)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert len(outputs) >= 5
    assert not [out for out in outputs if out.output_type == "error"]
