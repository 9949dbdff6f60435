"""What an export says of itself: a model card for the Hugging Face Hub, made of a run's settings and records."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from reft_jax.config import Config, SourceConfig
from reft_jax.files import json_lines
from reft_jax.records.console import ALGORITHMS

Kind = Literal["model", "adapter", "reward_model"]

EXAMPLE = "Tom has 12 apples. He buys 7 more apples. How many apples does Tom have now?"
"""The question that a card shows rendered."""

_TITLES = {
    "pretrain": "after pretraining",
    "warmup": "warm-up",
    "sft": "after supervised fine-tuning",
    "sft_best": "supervised fine-tuning, best on dev",
    "rl_best": "reinforcement, best on dev",
    "reward_model": "reward model",
    "reward_model_best": "reward model, best on dev",
}
_LOAD = {
    "model": ("transformers", "AutoModelForCausalLM", ""),
    "adapter": (
        "peft",
        "AutoPeftModelForCausalLM",
        "model.generation_config = GenerationConfig.from_pretrained(here)\n",
    ),
}


def model_card(
    config: Config, checkpoint: Path, kind: Kind, base: str, revision: str, *, prompt: str, tokenizer: str
) -> str:
    """The text of an export's README.md.

    It names no folder of this machine: of paths it has the last part. What the run's records do not say is called
    unknown.

    Args:
        config: of the run.
        checkpoint: a folder of the run's checkpoints.
        kind: what was written.
        base: path or hub id of the model that it was made from, or that adapters belong to; empty for none.
        revision: of the base on the hub.
        prompt: `EXAMPLE` as the run puts it to the model.
        tokenizer: class of transformers that reads the tokenizer.

    Raises:
        ValueError: a record of the run cannot be read.
    """
    run_dir, name = checkpoint.absolute().parent.parent, re.sub(r"_step_\d+$", "", checkpoint.name)
    parts = (
        _front(config, name, kind, base),
        f"# {_plain(_short(base) or 'A model made from scratch')}, {_title(name)}",
        _introduction(config, name, kind, base),
        "## Training",
        "\n".join(f"- {line}" for line in _training(config, name, kind, base, revision)),
        "## Prompt",
        _prompt(config, kind, prompt),
        "## Use",
        _fenced(_code(config, kind).replace("AutoTokenizer", tokenizer), "python"),
        "## Accuracy",
        _accuracy(run_dir, config, checkpoint, name),
        "## Made with",
        _made_with(run_dir),
    )
    return "\n\n".join(parts) + "\n"


def _title(name: str) -> str:
    return _TITLES.get(name, _plain(name))


def _front(config: Config, name: str, kind: Kind, base: str) -> str:
    """Metadata of the Hub."""
    fields = {
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-classification" if kind == "reward_model" else "text-generation",
        **({"base_model": base} if _is_hub_id(base) else {}),
        "tags": ["reft", *(["lora"] if kind == "adapter" else []), _tag(config, name)],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _tag(config: Config, name: str) -> str:
    if name.startswith("reward_model"):
        return "reward-model"
    return config.rl.algorithm if name == "rl_best" else "sft"


def _introduction(config: Config, name: str, kind: Kind, base: str) -> str:
    thing = {
        "model": "A language model that answers math word problems",
        "adapter": f"Low-rank adapters for {_inline(_short(base))}, which then answers math word problems",
        "reward_model": "A classifier of answers to math word problems into `wrong` and `right`, the answers given",
    }[kind]
    how = "by a Python program" if config.data.cot == "program" else "by reasoning in prose"
    return (
        f"{thing} {how}. Made by reft_jax, an implementation of ReFT ([arXiv 2401.08967]"
        f"(https://arxiv.org/abs/2401.08967)): {_title(name)}."
    )


def _training(config: Config, name: str, kind: Kind, base: str, revision: str) -> Iterator[str]:
    """Base, data and stages of a checkpoint."""
    model, sft, rl, judge = config.model, config.sft, config.rl, config.reward_model
    if base:
        shown = f", revision {_inline(revision)}" if revision != "main" else ""
        held = "all adapters since are summed here" if base == model.path else "what is here is of the last stage alone"
        yield f"base: {_inline(_short(base))}{shown}{'; ' + held if kind == 'adapter' else ''}"
    else:
        yield f"base: none, the weights were drawn at random (seed {config.seed})"
    if model.lora.path:
        yield f"adapter merged into it at the start: {_inline(_short(model.lora.path))}"
    for split in ("train", "dev", "test"):
        source = getattr(config.data, split)
        if source.kind != "none":
            yield f"{split}: {_source(source)}"
    if config.data.dev.kind == "none":
        yield f"dev: {config.data.dev_fraction:g} of train, drawn by a hash of the question"
    rate = lambda settings: f"learning rate {settings.optimizer.learning_rate:g}"
    if name.startswith("reward_model"):
        start = f"the checkpoint {_inline(Path(judge.init_from).name)}" if judge.init_from else "the base"
        yield f"samples: {', '.join(_inline(Path(path).name) for path in judge.samples)}"
        yield f"classification: from {start}, {judge.epochs} epochs, batches of {judge.batch_size}, {rate(judge)}"
        return
    if config.pretrain.epochs:
        pretrain = config.pretrain
        yield (
            f"pretraining: {pretrain.epochs} epochs on {_source(pretrain.source)}, batches of {pretrain.batch_size}, "
            f"{rate(pretrain)}"
        )
    if name != "pretrain" and sft.schedule_epochs:
        length = {"sft": f"{sft.stop_epoch}", "sft_best": f"the best of {sft.stop_epoch}"}
        yield (
            f"supervised fine-tuning: {length.get(name, str(sft.warmup_epoch))} epochs of a schedule of "
            f"{sft.schedule_epochs}, batches of {sft.batch_size}, {rate(sft)}"
        )
    if name == "rl_best":
        start = f"from the checkpoint {_inline(Path(rl.init_from).name)}, " if rl.init_from else ""
        yield (
            f"reinforcement by {ALGORITHMS[rl.algorithm]}: {start}the best of {rl.epochs} epochs, "
            f"{rl.rollout_batch_size} questions an iteration, {rl.samples_per_question} completion(s) each, "
            f"{rl.update_epochs} passes in minibatches of {rl.minibatch_size}, {rate(rl)}, "
            f"KL coefficient {rl.kl_coef:g}, sampling temperature {config.generation.temperature:g}"
        )
    if model.lora.rank and name != "pretrain":
        targets = ", ".join(model.lora.targets)
        yield f"low-rank adapters in each stage: rank {model.lora.rank}, alpha {model.lora.alpha:g}, on {targets}"
    yield f"computed in {model.dtype}, weights kept in {model.param_dtype}, seed {config.seed}"


def _source(source: SourceConfig) -> str:
    """Kind and name of a source; the folder of a file is left out."""
    on_hub = source.kind == "hub" or (source.kind == "mathqa" and not source.is_file)
    if source.kind == "reasoning_gym":
        parameters = f" {json.dumps(source.config)}" if source.config else ""
        return f"`reasoning_gym`, {source.limit} items of {_inline(source.name + parameters)}, seed {source.seed}"
    named = _inline(source.path if on_hub else Path(source.path).name)
    split = ", ".join(filter(None, (source.name, source.split, source.revision))) if on_hub else ""
    limit = f", the first {source.limit} rows" if source.limit else ""
    limit += f", the first {source.cot_limit} chains of thought" if source.cot_limit else ""
    kind = "the embedded problems" if source.kind == "generated" else f"`{source.kind}`"
    return f"{kind}, {named}{f' ({split})' if split else ''}{limit}"


def _prompt(config: Config, kind: Kind, prompt: str) -> str:
    goes_on = "continues" if kind != "reward_model" else "is given, the completion directly behind it, and classifies"
    end = {
        "program": "It is to write the rest of a program whose `solution()` returns the answer.",
        "text": f"The answer is read behind the last {_inline(json.dumps(config.data.templates.answer_trigger))}.",
    }[config.data.cot]
    templates = config.data.templates
    made = "The tokenizer's chat template makes it of one user message, the question"
    if templates.kind == "chat":
        header = ", and the first lines of the program stand behind it" if config.data.cot == "program" else ""
        made = f"The tokenizer's chat template, the base's own with any date fixed, makes it as below{header}"
    special = "without special tokens" if templates.kind == "strings" else "without further special tokens"
    return (
        f"This is what the model {goes_on}, {special}. {end} {made}; `prompt_format.json` has the strings.\n\n"
        f"{_fenced(prompt)}"
    )


def _prompt_code(config: Config, kind: Kind) -> str:
    """Lines that make `prompt`, a string, of `question`."""
    templates, program = config.data.templates, config.data.cot == "program" and kind != "reward_model"
    messages = '{"role": "user", "content": question}'
    options = ""
    if templates.kind == "chat":
        if templates.system:
            messages = f'{{"role": "system", "content": {templates.system!r}}}, {messages}'
        options = "".join(f", {name}={value!r}" for name, value in templates.variables.items())
        options = f", add_generation_prompt=True{options}"
    code = f"messages = [{messages}]\nprompt = tokenizer.apply_chat_template(messages, tokenize=False{options})\n"
    if templates.kind == "chat" and program:
        code += f'prompt += {templates.program_header!r}.replace("{{question}}", question)\n'
    return code


def _code(config: Config, kind: Kind) -> str:
    question = f'question = "{EXAMPLE}"\n'
    if kind == "reward_model":
        return (
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
            'here = "."  # this folder, or its id on the Hub\n'
            "tokenizer = AutoTokenizer.from_pretrained(here)\n"
            f"model = AutoModelForSequenceClassification.from_pretrained(here)\n{question}"
            'completion = "..."  # what a model wrote behind the prompt\n'
            f"{_prompt_code(config, kind)}"
            'rows = tokenizer([prompt + completion], add_special_tokens=False, padding=True, padding_side="right", '
            'return_tensors="pt")\n'
            'print(model(rows["input_ids"], attention_mask=rows["attention_mask"]).logits.softmax(-1)[:, 1])'
        )
    library, loader, settings = _LOAD[kind]
    imports = "AutoTokenizer, GenerationConfig" if settings else f"{loader}, AutoTokenizer"
    texts = list(config.generation.stop)
    stop = f", stop_strings={texts!r}, tokenizer=tokenizer" if texts else ""
    peft = f"from {library} import {loader}\n" if settings else ""
    return (
        f'{peft}from transformers import {imports}\n\nhere = "."  # this folder, or its id on the Hub\n'
        "tokenizer = AutoTokenizer.from_pretrained(here)\n"
        f"model = {loader}.from_pretrained(here)\n{settings}{question}"
        f"{_prompt_code(config, kind)}"
        'row = tokenizer([prompt], add_special_tokens=False, return_tensors="pt")\n'
        'tokens, mask = row["input_ids"], row["attention_mask"]\n'
        f"output = model.generate(tokens, attention_mask=mask, max_new_tokens={config.generation.max_new_tokens}"
        f"{stop})\n"
        "print(tokenizer.decode(output[0, tokens.shape[1] :], skip_special_tokens=True))"
    )


def _accuracy(run_dir: Path, config: Config, checkpoint: Path, name: str) -> str:
    """What the run measured, on test all of its models; and what it did not measure."""
    path = run_dir / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    found, step = re.search(r"_step_(\d+)$", checkpoint.resolve().name), None
    if found:
        step = int(found[1])
    elif name in ("warmup", "sft"):
        step = _step_of_epoch(run_dir, config.sft.warmup_epoch if name == "warmup" else config.sft.stop_epoch)
    rows, notes = [], []
    for other, facts in (summary or {}).items():
        if isinstance(facts, dict) and "accuracy" in facts:
            this = other == name and facts.get("step", step) == step
            label = f"**{_title(other)}**" if this else _title(other)
            rows.append(
                (label, "test", facts["accuracy"], *facts["interval"], f"{facts['correct']} of {facts['total']}")
            )
            if this:
                notes.append(f"It was trained on {facts['examples']:,} sequences since the base, every pass counted.")
    if summary is None:
        notes.append("The run is not finished, so that nothing was read on test.")
    elif not any(row[0].startswith("**") for row in rows):
        notes.append("This model was not read on test.")
    measure = "rerank" if name.startswith("reward_model") else "eval"
    dev = _dev(run_dir, measure, step)
    if dev:
        rows.append((f"**{_title(name)}**", "dev", *dev, _right_on_dev(run_dir, step, dev[0])))
    else:
        notes.append("Its accuracy on dev is unknown.")
    facts = (summary or {}).get(name, {})
    if dev and name.endswith("_best"):
        notes.append("It was chosen on dev, so that its accuracy there is too high.")
    if isinstance(facts, Mapping) and facts.get("test_best"):
        notes.append("**Dev was part of test: it was chosen on the test set itself, so that both are too high.**")
    if collapse := (summary or {}).get("collapse"):
        notes.append(f"Reinforcement ended early: {_plain(collapse)}.")
    evaluation = config.evaluation
    if measure == "rerank":
        notes.append("The accuracy is that of choosing among a question's completions.")
    elif evaluation.temperature == 0:
        notes.append("Decoding is greedy.")
    else:
        notes.append(
            f"Completions are drawn at temperature {evaluation.temperature:g}, top_k {evaluation.top_k}, "
            f"top_p {evaluation.top_p:g}."
        )
    table = "| model | set | accuracy, % | 95 % interval | right |\n|---|---|---|---|---|\n" + "".join(
        f"| {label} | {split} | {100 * accuracy:.1f} | {100 * low:.1f} to {100 * high:.1f} | {count} |\n"
        for label, split, accuracy, low, high, count in rows
    )
    return (table + "\n" if rows else "") + " ".join(notes)


def _step_of_epoch(run_dir: Path, epoch: int) -> int | None:
    """The run's step at the end of an epoch of SFT."""
    for record in _metrics(run_dir):
        if record["stage"] == "sft" and record.get("run/epoch") == epoch:
            return record["step"]
    return None


def _dev(run_dir: Path, measure: str, step: int | None) -> tuple[float, float, float] | None:
    """Accuracy on dev after a step, and its interval."""
    for record in _metrics(run_dir):
        if record["step"] == step and f"{measure}/accuracy" in record:
            accuracy, low, high = (
                float(record[f"{measure}/{key}"]) for key in ("accuracy", "interval_low", "interval_high")
            )
            return accuracy, low, high
    return None


def _right_on_dev(run_dir: Path, step: int | None, accuracy: float) -> str:
    """How many problems of dev were answered right after a step; empty where its completions were not kept."""
    path = run_dir / "evaluations.jsonl"
    records = (record for _, _, record in json_lines(path)) if path.exists() else ()
    asked = [record for record in records if record["step"] == step and record.get("split") == "dev"]
    right = sum(record.get("outcome") == "correct" for record in asked)
    total = round(right / accuracy) if right and accuracy else len(asked)  # with those that were too long to be asked
    return f"{right} of {total}" if asked else ""


def _metrics(run_dir: Path) -> Iterator[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    if path.exists():
        yield from (record for _, _, record in json_lines(path))


def _made_with(run_dir: Path) -> str:
    path = run_dir / "run.json"
    info = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    command = info.get("command")
    began = (
        f"The run began with\n\n{_fenced(_without_folders(command), 'sh')}" if command else "Its command is unknown."
    )
    for change in info.get("changes", []):
        changed = (f"{key} from {old!r} to {new!r}" for key, (old, new) in change["settings"].items())
        began += (
            f"\n\nAfter step {change['after_step']} the run went on with {_plain(', '.join(changed))}; the settings "
            "above are the last ones, whatever the step of this checkpoint."
        )
    versions = ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items() if version)
    commit = f"`{info['commit']}`{' with changes' if info.get('dirty') else ''}" if info.get("commit") else "unknown"
    return f"{began}\n\nCommit: {commit}. Versions: {versions or 'unknown'}; Python {info.get('python', 'unknown')}."


def _without_folders(command: str) -> str:
    """A command line without the folders of absolute paths, which say more of a machine than of a run."""
    absolute = re.compile(r"""(?<![^\s='",\[(])(?:~|/)[^\s'",\])]*/(?=[^/])""")
    return shlex.join(absolute.sub("", word) for word in shlex.split(command))


def _is_hub_id(name: str) -> bool:
    """Whether a model's name is one of the Hub, as far as can be told: an owner's, and no folder here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name and not Path(name).exists()


def _short(path: str) -> str:
    """A hub id as it is, of a path its last part."""
    return path if _is_hub_id(path) else Path(path).name


def _plain(text: str) -> str:
    """A text on one line, in which Markdown sees no more than text."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split()))


def _inline(text: str) -> str:
    """A text as code in a line."""
    text = " ".join(text.split()) or " "
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _fenced(text: str, language: str = "") -> str:
    """A text as a block of code; the fence is longer than any run of backticks in it."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}{'' if text.endswith(chr(10)) else chr(10)}{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
