"""`python -m reft_jax.export CHECKPOINT OUT`: a checkpoint of a run as a Hugging Face directory.

CHECKPOINT is one of RUN_DIR/checkpoints (`warmup`, `sft`, `sft_best`, `rl_best`, or a reward model's
`reward_model_best`). What else it takes, shape, `config.json` and tokenizer, is in the run's folder, so that the model
it started from is not needed again. OUT loads by transformers' `AutoModelForCausalLM`, a reward model by
`AutoModelForSequenceClassification`, and by `AutoTokenizer`; the value head, which transformers does not know, is a
file of its own.
"""

import functools
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from safetensors.numpy import save_file

from reft_jax.algorithms.train_state import abstract_params
from reft_jax.config import Config, MeshConfig, load_config
from reft_jax.data.tokenizers import SpecialIds, load_tokenizer, special_ids
from reft_jax.models.classifier import Classifier
from reft_jax.models.hf.adapters import save_adapters
from reft_jax.models.hf.export import classifier_fields, fresh_fields, save_decoder
from reft_jax.models.hf.load import CONFIG_FILE, GENERATION_FILE
from reft_jax.models.params import Tree, select
from reft_jax.models.policy import Policy
from reft_jax.parallel.processes import enable_x64
from reft_jax.parallel.sharding import make_mesh
from reft_jax.records.checkpoint import part_name, restore_params, run_of

VALUE_HEAD_FILE = "value_head.safetensors"
Dtype = Literal["float32", "bfloat16", "float16"]


def export(checkpoint: Path, out: Path, *, dtype: Dtype | None = None, shard_bytes: int = 5 * 10**9) -> None:
    """Writes weights, config, generation config, tokenizer, and value head and critic where there are any.

    The value head is a file of its own, a separate critic a folder `critic` with a config and weights like the model's.
    A reward model becomes a sequence classifier with the classes `wrong` and `right`, of rows that are prompt and
    completion tokenised as one string without special tokens.

    Args:
        checkpoint: a folder of RUN_DIR/checkpoints.
        out: a folder that is not there yet, or empty.
        dtype: of the weights in the files; without, that of the run's parameters.
        shard_bytes: the weights are split into files of at most this size.

    Raises:
        FileNotFoundError: there is no such checkpoint, or its folder is in no run's.
        FileExistsError: `out` has something in it.
        ValueError: a model made from scratch has a shape that no architecture of transformers has, or a reward model
            is of a family that has no classifier there.
    """
    part = lambda name: checkpoint.with_name(part_name(checkpoint.name, name))
    is_classifier = part("class_head").exists()
    run_dir, config = read_run(checkpoint, out, reward_model=is_classifier)
    ids = special_ids(load_tokenizer(str(run_dir / "tokenizer"), "main"))
    fields = read_fields(run_dir, config)
    if is_classifier:
        fields = classifier_fields(fields, pad=ids.pad)
    stored = config.model.param_dtype if config.model.param_dtype != "float64" else "float32"
    save = functools.partial(
        save_decoder, decoder=config.model.decoder, fields=fields, dtype=dtype or stored, shard_bytes=shard_bytes
    )
    read = lambda name, path: read_params(path, config, part=name, reward_model=is_classifier)
    head = {"class_head": read("class_head", part("class_head"))} if is_classifier else {}
    save(out, {**read("decoder", checkpoint), **head})
    shutil.copytree(run_dir / "tokenizer", out, dirs_exist_ok=True)
    if not is_classifier:
        write_generation_config(run_dir, out, ids)
    if part("critic").exists():
        save(out / "critic", read("critic", part("critic")))
    if part("value_head").exists():
        kernel, bias = (read("value_head", part("value_head"))[name] for name in ("kernel", "bias"))
        arrays = {"weight": np.asarray(kernel, np.float32).T.copy(), "bias": np.asarray(bias, np.float32)}
        save_file(arrays, out / VALUE_HEAD_FILE, metadata={"format": "pt"})  # as torch's Linear keeps them


def export_adapter(checkpoint: Path, out: Path, base: str = "") -> None:
    """Writes the adapters of a checkpoint in PEFT's format, unmerged.

    Those of `warmup`, `sft` and `sft_best` belong to the model that SFT started from; those of `rl_best` to the
    warm-up, into which SFT's are merged: export `warmup` for it and give its path as `base`.

    Args:
        checkpoint: a folder of RUN_DIR/checkpoints.
        out: a folder that is not there yet, or empty.
        base: path or hub id of the model they belong to; empty takes the run's `model.path`.

    Raises:
        FileNotFoundError: there is no such checkpoint, or it has no adapters.
        FileExistsError: `out` has something in it.
        ValueError: naming an adapter that PEFT's format has no place for.
    """
    run_dir, config = read_run(checkpoint, out)
    folder = checkpoint.with_name(part_name(checkpoint.name, "lora"))
    if not folder.exists():
        raise FileNotFoundError(f"no {folder}: the run was trained without adapters (model.lora.rank 0)")
    lora = read_params(folder, config, part="lora")
    model_type = read_fields(run_dir, config)["model_type"]
    save_adapters(out, lora, config.model, model_type, base or config.model.path)


def read_run(checkpoint: Path, out: Path, *, reward_model: bool = False) -> tuple[Path, Config]:
    """The folder and config of the run that a checkpoint is of, if `out` can be written to; see `run_of`."""
    run_dir = run_of(checkpoint, reward_model=reward_model)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: name a fresh folder")
    config = load_config(["--config", str(run_dir / "config.yaml")])
    enable_x64(config.model)
    return run_dir, config


def read_fields(run_dir: Path, config: Config) -> dict[str, Any]:
    """The `config.json` that the run's model came with, or that of a Llama for one made from scratch."""
    path = run_dir / "model" / CONFIG_FILE
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return fresh_fields(config.model.decoder)


def read_params(checkpoint: Path, config: Config, *, part: str, reward_model: bool = False) -> Tree:
    """The only part in a checkpoint of a policy or a reward model, such as `decoder` or `lora`, on the first device."""
    mesh = make_mesh(MeshConfig(fsdp=1, data=1, tensor=1), jax.devices()[:1])
    critic = config.rl.critic == "separate"
    model = Classifier(config.model, mesh) if reward_model else Policy(config.model, mesh, critic)
    abstract = abstract_params(model, mesh, value_head=True)
    return restore_params(checkpoint, select(abstract, {part}))[part]


def write_generation_config(run_dir: Path, out: Path, ids: SpecialIds) -> None:
    """The model's own generation config, or one that names the tokenizer's special tokens."""
    own = run_dir / "model" / GENERATION_FILE
    if own.exists():
        shutil.copy(own, out / GENERATION_FILE)
        return
    text = json.dumps({"eos_token_id": ids.eos, "pad_token_id": ids.pad}, indent=2) + "\n"
    (out / GENERATION_FILE).write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports as `arguments` (or the command line) say; returns 2 where something is wrong, else 0."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(prog="python -m reft_jax.export", description=__doc__)
    parser.add_argument("checkpoint", type=str, help="folder of RUN_DIR/checkpoints")
    parser.add_argument("out", type=str, help="folder to write, not there yet or empty")
    parser.add_argument("--dtype", type=Dtype | None, default=None, help="of the weights; default: the run's own")
    parser.add_argument("--adapter", action="store_true", help="write the adapters in PEFT's format, unmerged")
    parser.add_argument("--base", type=str, default="", help="model that the adapters belong to; default: the run's")
    parser.add_argument("--shard_size", type=float, default=5.0, help="largest file in GB (1e9 bytes)")
    options = parser.parse_args(arguments)
    try:
        checkpoint, out, size = Path(options.checkpoint), Path(options.out), int(options.shard_size * 1e9)
        if options.adapter:
            export_adapter(checkpoint, out, options.base)
        else:
            export(checkpoint, out, dtype=options.dtype, shard_bytes=size)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {', '.join(sorted(path.name for path in Path(options.out).iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
