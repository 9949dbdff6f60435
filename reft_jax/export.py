"""`python -m reft_jax.export CHECKPOINT OUT`: a checkpoint of a run as a Hugging Face directory.

CHECKPOINT is one of RUN_DIR/checkpoints (`warmup`, `sft`, `sft_best`, `rl_best`, or a reward model's
`reward_model_best`). What else it takes, shape, `config.json` and tokenizer, is in the run's folder, so that the model
it started from is not needed again. OUT loads by transformers' `AutoModelForCausalLM`, a reward model by
`AutoModelForSequenceClassification`, and by `AutoTokenizer`, whose chat template makes the run's prompt of a question;
it generates as the run evaluates, and README.md says what it is. The value head, which transformers does not know, is
a file of its own.

With --adapter OUT is a PEFT adapter of the run's `model.path`: the sum of all adapters between that and the checkpoint.
With --base FOLDER it is one of that model, and holds the adapters of the checkpoint's own stage alone.
"""

import dataclasses
import functools
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from safetensors.numpy import save_file

from reft_jax.algorithms.train_state import abstract_params
from reft_jax.config import Config, LoraConfig, MeshConfig, SettingsParser, load_config
from reft_jax.config.invocation import program
from reft_jax.config.paths import absolute, looks_local
from reft_jax.config.ranges import PositiveFloat
from reft_jax.data.chat import with_date
from reft_jax.data.chat_template import chat_template, prompt_format
from reft_jax.data.encoding import token_ids
from reft_jax.data.prompts import generation_prompt
from reft_jax.data.tokenizers import SpecialIds, load_tokenizer, special_ids
from reft_jax.files import user_path
from reft_jax.models.classifier import Classifier
from reft_jax.models.hf.adapters import load_adapters, save_adapters
from reft_jax.models.hf.export import classifier_fields, fresh_fields, generation_fields, save_decoder, trained_fields
from reft_jax.models.hf.load import CONFIG_FILE, GENERATION_FILE, end_tokens, resolve
from reft_jax.models.lora import concatenate
from reft_jax.models.params import Tree, select, stacked
from reft_jax.models.policy import Policy
from reft_jax.parallel.processes import enable_x64
from reft_jax.parallel.sharding import make_mesh
from reft_jax.problem import Problem
from reft_jax.records.checkpoint import part_name, restore_params, run_of
from reft_jax.records.model_card import EXAMPLE, Kind, model_card
from reft_jax.training.reinforcement import BEST

VALUE_HEAD_FILE = "value_head.safetensors"
Dtype = Literal["float32", "bfloat16", "float16"]


def export(checkpoint: Path, out: Path, *, dtype: Dtype | None = None, shard_bytes: int = 5 * 10**9) -> None:
    """Writes weights, config, generation config, tokenizer, model card, and value head and critic where there are any.

    Config and generation config have the special tokens of the run, and generate as it evaluates, whatever its base
    says. The value head is a file of its own, a separate critic a folder `critic` with a config and weights like the
    model's. A reward model becomes a sequence classifier with the classes `wrong` and `right`, of rows that are prompt
    and completion tokenised as one string without special tokens.

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
    checkpoint = Path(os.path.abspath(checkpoint))  # `.` has no name, and so no neighbours
    part = lambda name: checkpoint.with_name(part_name(checkpoint.name, name))
    is_classifier = part("class_head").exists()
    run_dir, config = read_run(checkpoint, out, reward_model=is_classifier)
    tokenizer, ids = read_tokenizer(run_dir, config)
    fields = trained_fields(read_fields(run_dir, config), ids, tokenizer.bos_token_id)
    if is_classifier:
        fields = classifier_fields(fields, pad=ids.pad)
    stored = config.model.param_dtype if config.model.param_dtype != "float64" else "float32"
    save = functools.partial(
        save_decoder, decoder=config.model.decoder, fields=fields, dtype=dtype or stored, shard_bytes=shard_bytes
    )
    read = lambda name, path: read_params(path, config, part=name, reward_model=is_classifier)
    head = {"class_head": read("class_head", part("class_head"))} if is_classifier else {}
    save(out, {**read("decoder", checkpoint), **head})
    if part("critic").exists():
        save(out / "critic", read("critic", part("critic")))
    if part("value_head").exists():
        kernel, bias = (read("value_head", part("value_head"))[name] for name in ("kernel", "bias"))
        arrays = {"weight": np.asarray(kernel, np.float32).T.copy(), "bias": np.asarray(bias, np.float32)}
        save_file(arrays, out / VALUE_HEAD_FILE, metadata={"format": "pt"})  # as torch's Linear keeps them
    kind: Kind = "reward_model" if is_classifier else "model"
    write_companions(checkpoint, out, config, kind, config.model.path, config.model.revision)


def export_adapter(checkpoint: Path, out: Path, base: str = "") -> str:
    """Writes adapters in PEFT's format, unmerged, and beside them what `export` writes beside weights.

    Base and adapters together are the checkpoint, but for the rounding of a checkpoint whose parameters are bfloat16.

    Args:
        checkpoint: a folder of RUN_DIR/checkpoints.
        out: a folder that is not there yet, or empty.
        base: path or hub id of the model that the adapters of the checkpoint's own stage belong to, which are written
            alone. Empty writes the sum of all adapters between the run's `model.path` and the checkpoint: those of
            `model.lora.path`, of the warm-up, and its own.

    Returns:
        The model that they belong to.

    Raises:
        FileNotFoundError: there is no such checkpoint, it has no adapters, or those of `model.lora.path` are gone.
        FileExistsError: `out` has something in it.
        ValueError: without a `base`, where more than adapters stands between `model.path` and the checkpoint; or naming
            an adapter that PEFT's format has no place for.
    """
    run_dir, config = read_run(checkpoint, out)
    if not adapters_of(checkpoint).exists():
        raise FileNotFoundError(
            f"no {adapters_of(checkpoint)}: the run was trained without adapters (model.lora.rank 0)"
        )
    model_type = read_fields(run_dir, config)["model_type"]
    base = own_base(base, checkpoint, config) if base else ""
    revision = "main" if base else config.model.revision
    settings, lora = read_own(checkpoint, config) if base else sum_adapters(checkpoint, config, model_type)
    base = base or config.model.path
    save_adapters(out, lora, dataclasses.replace(config.model, lora=settings), model_type, base, revision)
    write_companions(checkpoint, out, config, "adapter", base, revision)
    return base


def own_base(base: str, checkpoint: Path, config: Config) -> str:
    """The model that a user says a checkpoint's own adapters belong to; of a folder its absolute path.

    Raises:
        FileNotFoundError: it is a folder that is not there, or holds no model.
        ValueError: it is the run's `model.path`, and the stage began with another model.
    """
    start = start_of(checkpoint, config)
    if config.model.path in (base, absolute(base)) and (start or config.model.lora.path):
        raise ValueError(
            f"the adapters of {checkpoint} belong to {start or 'model.path with model.lora.path merged'}, not to "
            "model.path: leave --base out for an adapter of model.path, or export that and name its folder"
        )
    if not looks_local(base):
        return base
    return str(resolve(absolute(base), key="--base"))


def adapters_of(checkpoint: Path) -> Path:
    """The folder of a checkpoint's own adapters."""
    return checkpoint.with_name(part_name(checkpoint.name, "lora"))


def read_own(checkpoint: Path, config: Config) -> tuple[LoraConfig, Tree]:
    """The adapters of a checkpoint's own stage."""
    return config.model.lora, read_params(adapters_of(checkpoint), config, part="lora")


def sum_adapters(checkpoint: Path, config: Config, model_type: str) -> tuple[LoraConfig, Tree]:
    """All adapters between the run's `model.path` and a checkpoint, as one of summed rank.

    Raises:
        FileNotFoundError: those of `model.lora.path` are gone.
        ValueError: more than adapters stands between; says which model those of the checkpoint belong to.
    """
    parts, start = [read_own(checkpoint, config)], start_of(checkpoint, config)
    if start == checkpoint.with_name("warmup") and adapters_of(start).exists():
        parts.insert(0, read_own(start, config))
        below = start_of(start, config)
    else:
        below = start
    if below or not config.model.path:
        advice = (
            f"export {start} to a folder, and name that by --base" if start else "export the model without --adapter"
        )
        owner = start or "the model that the run made from scratch, which is in no file"
        raise ValueError(
            f"the adapters of {checkpoint} belong to {owner}, which is more than model.path and adapters: {advice}"
        )
    if config.model.lora.path:
        parts.insert(0, load_adapters(resolve(config.model.lora.path, key="model.lora.path"), config.model, model_type))
    return concatenate(parts)


def start_of(checkpoint: Path, config: Config) -> Path | None:
    """The checkpoint that a checkpoint's stage began with; None where that was the model that the run began with."""
    warmup, pretrain = checkpoint.with_name("warmup"), checkpoint.with_name("pretrain")
    if checkpoint.name.startswith(BEST) and warmup.exists():
        return warmup
    if checkpoint.name.startswith(BEST) and config.rl.init_from:
        return Path(config.rl.init_from)
    return pretrain if pretrain.exists() else None


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
    abstract = stacked(abstract_params(model, mesh, value_head=True))
    return restore_params(checkpoint, select(abstract, {part}))[part]


def read_tokenizer(run_dir: Path, config: Config) -> tuple[Any, SpecialIds]:
    """The run's tokenizer, and the ids that it pads and ends with."""
    tokenizer = load_tokenizer(str(run_dir / "tokenizer"), "main")
    return tokenizer, special_ids(tokenizer, end_tokens(run_dir / "model"), config.data.templates.target_end)


def write_companions(checkpoint: Path, out: Path, config: Config, kind: Kind, base: str, revision: str) -> None:
    """Writes what stands beside weights or adapters: tokenizer, prompt format, generation config, model card."""
    tokenizer, ids = read_tokenizer(run_of(checkpoint, reward_model=kind == "reward_model"), config)
    templates, cot = config.data.templates, config.data.cot
    own = templates.kind == "chat"
    tokenizer.chat_template = with_date(tokenizer.get_chat_template()) if own else chat_template(templates, cot)
    tokenizer.save_pretrained(out)
    files = {"prompt_format.json": prompt_format(templates, cot)}
    if kind != "reward_model":
        unused = config.model.decoder.unused_ids
        files[GENERATION_FILE] = generation_fields(ids, tokenizer.bos_token_id, config.evaluation, unused)
    for name, fields in files.items():
        (out / name).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    prompt = generation_prompt(Problem("", EXAMPLE, ""), templates, cot)
    loader = tokenizer_class(tokenizer, out, prompt)
    card = model_card(config, checkpoint, kind, base, revision, prompt=prompt, tokenizer=loader)
    (out / "README.md").write_text(card, encoding="utf-8")


def tokenizer_class(tokenizer: Any, out: Path, prompt: str) -> str:
    """The class of transformers that reads the tokenizer in `out` as it is; warns where that is not `AutoTokenizer`.

    That one rebuilds the tokenizer of some families as their own first model had it, whatever the folder says.
    """
    texts = [prompt, "def f(x):\n        return  'é' * 12345  # ½\t\n"]
    if token_ids(texts, load_tokenizer(str(out), "main")) == token_ids(texts, tokenizer):
        return "AutoTokenizer"
    warnings.warn(
        f"AutoTokenizer reads the tokenizer in {out} otherwise than the run did, since it goes by the model's family: "
        "use PreTrainedTokenizerFast",
        stacklevel=2,
    )
    return "PreTrainedTokenizerFast"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports as `arguments` (or the command line) say; returns 2 where something is wrong, else 0."""
    parser = SettingsParser(prog=program("export"), description=__doc__)
    parser.add_argument("checkpoint", type=str, help="folder of RUN_DIR/checkpoints")
    parser.add_argument("out", type=str, help="folder to write, not there yet or empty")
    parser.add_argument("--dtype", type=Dtype | None, default=None, help="of the weights; default: the run's own")
    parser.add_argument(
        "--adapter", action="store_true", help="write adapters of the run's model.path, as PEFT reads them"
    )
    parser.add_argument("--base", type=str, default="", help="write the checkpoint's own adapters alone, of this model")
    parser.add_argument("--shard_size", type=PositiveFloat, default=5.0, help="largest file in GB (1e9 bytes)")
    options = parser.parse_args(arguments)
    if options.base and not options.adapter:
        parser.error("--base names the model that adapters belong to, and goes with --adapter")
    if options.dtype and options.adapter:
        parser.error("--dtype is that of whole models: adapters are written as they were trained")
    try:
        checkpoint, out, size = user_path(options.checkpoint), user_path(options.out), int(options.shard_size * 1e9)
        with warnings.catch_warnings(record=True) as told:
            if options.adapter:
                print(f"adapters for {export_adapter(checkpoint, out, options.base)}")
            else:
                export(checkpoint, out, dtype=options.dtype, shard_bytes=size)
        for warning in told:
            print(f"warning: {warning.message}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
