"""`python -m reft_jax.export CHECKPOINT OUT`: a checkpoint of a run as a Hugging Face directory.

CHECKPOINT is one of RUN_DIR/checkpoints (`warmup`, `sft`, `sft_best`, `reft`). What else it takes, shape, `config.json`
and tokenizer, is in the run's folder, so that the model it started from is not needed again. OUT loads by transformers'
`AutoModelForCausalLM` and `AutoTokenizer`; the value head, which transformers does not know, is a file of its own.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from safetensors.numpy import save_file

from reft_jax.checkpoint import restore_params, value_head_name
from reft_jax.config import Config, MeshConfig, load_config
from reft_jax.models.hf import CONFIG_FILE, GENERATION_FILE
from reft_jax.models.hf_export import fresh_fields, save_decoder
from reft_jax.models.policy import Params, Policy
from reft_jax.sharding import make_mesh
from reft_jax.train_state import abstract_params

VALUE_HEAD_FILE = "value_head.safetensors"
Dtype = Literal["float32", "bfloat16", "float16"]


def export(checkpoint: Path, out: Path, *, dtype: Dtype | None = None, shard_bytes: int = 5 * 10**9) -> None:
    """Writes weights, config, generation config, tokenizer and, where there is one, the value head.

    Args:
        checkpoint: a folder of RUN_DIR/checkpoints.
        out: a folder that is not there yet, or empty.
        dtype: of the weights in the files; without, that of the run's parameters.
        shard_bytes: the weights are split into files of at most this size.

    Raises:
        FileNotFoundError: there is no such checkpoint, or its folder is in no run's.
        FileExistsError: `out` has something in it.
        ValueError: a model made from scratch has a shape that no architecture of transformers has.
    """
    run_dir = checkpoint.absolute().parent.parent
    for path in (checkpoint, run_dir / "config.yaml"):
        if not path.exists():
            raise FileNotFoundError(
                f"no {path}: give a folder of RUN_DIR/checkpoints, such as RUN_DIR/checkpoints/reft"
            )
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: name a fresh folder")
    config = load_config(["--config", str(run_dir / "config.yaml")])
    if "float64" in (config.model.dtype, config.model.param_dtype):
        jax.config.update("jax_enable_x64", True)
    stored = config.model.param_dtype if config.model.param_dtype != "float64" else "float32"
    fields = read_fields(run_dir, config)
    params = read_params(checkpoint, config, value_head=False)["decoder"]
    save_decoder(out, params, config.model.decoder, fields, dtype=dtype or stored, shard_bytes=shard_bytes)
    write_generation_config(run_dir, out)
    shutil.copytree(run_dir / "tokenizer", out, dirs_exist_ok=True)
    head = checkpoint.with_name(value_head_name(checkpoint.name))
    if head.exists():
        kernel, bias = (read_params(head, config, value_head=True)["value_head"][name] for name in ("kernel", "bias"))
        arrays = {"weight": np.asarray(kernel, np.float32).T.copy(), "bias": np.asarray(bias, np.float32)}
        save_file(arrays, out / VALUE_HEAD_FILE, metadata={"format": "pt"})  # as torch's Linear keeps them


def read_fields(run_dir: Path, config: Config) -> dict[str, Any]:
    """The `config.json` that the run's model came with, or that of a Llama for one made from scratch."""
    path = run_dir / "model" / CONFIG_FILE
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return fresh_fields(config.model.decoder)


def read_params(checkpoint: Path, config: Config, *, value_head: bool) -> Params:
    """A checkpoint's parameters, laid out over whatever devices are here."""
    mesh = make_mesh(MeshConfig(fsdp=1, data=1, tensor=1), jax.devices()[:1])
    abstract = abstract_params(Policy(config.model, mesh), mesh, value_head=value_head)
    wanted = "value_head" if value_head else "decoder"
    return restore_params(checkpoint, {wanted: abstract[wanted]})


def write_generation_config(run_dir: Path, out: Path) -> None:
    """The model's own generation config, or one that names the tokenizer's special tokens."""
    own = run_dir / "model" / GENERATION_FILE
    if own.exists():
        shutil.copy(own, out / GENERATION_FILE)
        return
    from reft_jax.data.tokenizers import load_tokenizer, special_ids

    ids = special_ids(load_tokenizer(str(run_dir / "tokenizer"), "main"))
    text = json.dumps({"eos_token_id": ids.eos, "pad_token_id": ids.pad}, indent=2) + "\n"
    (out / GENERATION_FILE).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line and exports; exits with 2 where something is wrong."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(prog="python -m reft_jax.export", description=__doc__)
    parser.add_argument("checkpoint", type=str, help="folder of RUN_DIR/checkpoints")
    parser.add_argument("out", type=str, help="folder to write, not there yet or empty")
    parser.add_argument("--dtype", type=Dtype | None, default=None, help="of the weights; default: the run's own")
    parser.add_argument("--shard_size", type=float, default=5.0, help="largest file in GB (1e9 bytes)")
    options = parser.parse_args(arguments)
    try:
        size = int(options.shard_size * 1e9)
        export(Path(options.checkpoint), Path(options.out), dtype=options.dtype, shard_bytes=size)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{options.out}: {', '.join(sorted(path.name for path in Path(options.out).iterdir()))}")


if __name__ == "__main__":
    main()
