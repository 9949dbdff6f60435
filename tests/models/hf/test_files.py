"""Weights in torch's own format: the same parameters as from safetensors, and errors that say what to do."""

import json
import re
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from reft_jax.config import ModelConfig
from reft_jax.models.hf.load import decoder_config, load_decoder_params

GOLDEN = Path(__file__).parents[1] / "golden"


def load(directory: Path) -> dict:
    return load_decoder_params(directory, ModelConfig(decoder=decoder_config(directory)))


@pytest.fixture
def pickled(tmp_path):
    """A golden model's directory with its weights in torch's format."""
    torch = pytest.importorskip("torch", reason="writes files of torch")
    from safetensors.torch import load_file

    def make(case: str, **settings) -> Path:
        directory = tmp_path / case
        directory.mkdir()
        shutil.copy(GOLDEN / case / "config.json", directory)
        tensors = {k: v for path in (GOLDEN / case).glob("*.safetensors") for k, v in load_file(path).items()}
        torch.save(tensors, directory / "pytorch_model.bin", **settings)
        return directory

    return make


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", ["gpt2_by_layer", "llama3", "codegen"])  # float16, bfloat16, float32
def test_pickles_give_what_safetensors_give(case, legacy, pickled):
    directory = pickled(case, **({"_use_new_zipfile_serialization": False} if legacy else {}))
    jax.tree.map(np.testing.assert_array_equal, load(directory), load(GOLDEN / case))


def test_several_pickles_with_an_index(pickled):
    import torch

    directory = pickled("opt")
    tensors = torch.load(directory / "pytorch_model.bin", weights_only=True)
    names = sorted(tensors)
    parts = {"pytorch_model-1.bin": names[:9], "pytorch_model-2.bin": names[9:]}
    for file, part in parts.items():
        torch.save({name: tensors[name] for name in part}, directory / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (directory / "pytorch_model.bin").unlink()
    jax.tree.map(np.testing.assert_array_equal, load(directory), load(GOLDEN / "opt"))
    (directory / "pytorch_model-2.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"pytorch_model-2\.bin: no such file"):
        load(directory)


class Hostile:
    def __reduce__(self):
        return (print, ("code of the file was run",))


def test_a_pickle_runs_no_code_and_damage_is_named(pickled, capsys):
    import torch

    path = pickled("opt") / "pytorch_model.bin"
    whole = path.read_bytes()
    torch.save({"x": Hostile()}, path)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: truncated, corrupt, or with more in it than tensors"):
        load(path.parent)
    assert "was run" not in capsys.readouterr().out
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: truncated, corrupt"):
        load(path.parent)


def test_a_pickle_where_torch_is_missing_says_what_to_install(tmp_path, monkeypatch):
    shutil.copy(GOLDEN / "opt" / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=re.escape("pytorch_model.bin: torch's own format") + ".*pip install torch"):
        load(tmp_path)
