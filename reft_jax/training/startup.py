"""From a config to a run at work: what can be wrong with files, settings and devices is found here, early."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from reft_jax.algorithms.steps import steps
from reft_jax.algorithms.train_state import abstract_stage
from reft_jax.config import Config, DistributedConfig, ModelConfig, RewardConfig, RlConfig
from reft_jax.config.validation import check_batches, check_lengths, require_files
from reft_jax.data.batches import steps_per_epoch
from reft_jax.data.buckets import automatic, buckets_of, with_buckets
from reft_jax.data.chat import bos_warning, with_templates
from reft_jax.data.encoding import Example, Prompt
from reft_jax.data.problem_sets import encode_for_sampling, encode_for_training, read_problem_sets
from reft_jax.data.prompts import target_text
from reft_jax.data.readers import read_sets
from reft_jax.data.tokenizers import model_tokenizer, special_ids
from reft_jax.models.hf.load import end_tokens, require_model, require_weights, resolve_model
from reft_jax.models.policy import Policy
from reft_jax.parallel.compilation import CompiledSteps
from reft_jax.parallel.processes import StopRequest, digest, on_process_zero, require_equal
from reft_jax.parallel.sharding import make_mesh, shard_count
from reft_jax.problem import Problem
from reft_jax.records.console import ProgressDisplay
from reft_jax.records.log import LOG_FILE, append_log
from reft_jax.records.provenance import command_line
from reft_jax.records.trackers import require_trackers
from reft_jax.reward.functions import load_functions
from reft_jax.reward.pool import ProgramRunner
from reft_jax.reward.verdicts import verdicts_of
from reft_jax.training.completion import before
from reft_jax.training.directory import claim_directory, lock_run_dir, open_records, read_summary, with_kept_buckets
from reft_jax.training.lifecycle import Lifecycle
from reft_jax.training.model import Model
from reft_jax.training.sampler import Sampler
from reft_jax.training.state import Records, Stage


class Run(NamedTuple):
    """A run at work: what it writes, the model that it trains, and what on."""

    records: Records
    sampler: Sampler
    examples: Mapping[str, list[Example]]
    """Rows of annotations by stage: pretrain, sft."""
    stages: Mapping[str, Stage]
    """By name, in order."""


def claim_run(command: Lifecycle, config: Config) -> tuple[Config, Any, dict[str, Any] | None]:
    """Locks the run's folder until the command ends; config and tokenizer of `prepare`, and the summary if it is done.

    Raises:
        FileNotFoundError, ValueError: see `prepare`; where a file or a package is missing, before a folder is made.
        OSError: another run is at work in the folder.
    """
    require_files(config)
    require_trackers(config.logging.trackers)
    run_dir = Path(config.run_dir)
    command.open(lock_run_dir(run_dir))
    config, tokenizer = prepare(config, run_dir / LOG_FILE)
    return config, tokenizer, read_summary(config)


def prepare(config: Config, log: Path | None = None) -> tuple[Config, Any]:
    """The config with the model's shape filled in, and the tokenizer; claims the run's folder.

    What it prints stands in `log` too.

    Raises:
        FileNotFoundError: naming the key, when a file or a folder of the config is missing.
        ValueError: the folder holds a run of other settings, the model has or asks for something that is not done here,
            or it does not suit the tokenizer.
    """
    require_files(config)
    begun = (Path(config.run_dir) / "checkpoints").exists()  # an adapter that it started from may be gone
    require_model(config.model, adapter=not begun)
    tokenizer = model_tokenizer(config.model)
    config = dataclasses.replace(config, model=resolve_model(config.model, tokenizer.get_vocab()))
    config = with_made_buckets(with_kept_buckets(with_templates(config, tokenizer)), tokenizer, log)
    check_lengths(config)
    if not begun:
        require_weights(config.model)
    on_process_zero(lambda: claim_directory(config, tokenizer))
    return config, tokenizer


def with_made_buckets(config: Config, tokenizer: Any, log: Path | None = None) -> Config:
    """The config with lengths for buckets that are `auto`, which are printed; reads the problems that they are made of.

    What it prints stands in `log` too.

    Raises:
        FileNotFoundError, ValueError: bad problems, or samples.
    """
    keys = automatic(config)
    if not keys:
        return config
    sets = read_sets(config, lambda dropped: None) if keys != [("reward_model", "row_buckets")] else {}
    config = with_buckets(config, tokenizer, sets)
    if jax.process_index() == 0:
        for section, name in keys:
            said = f"{section}.{name}: auto, made {list(buckets_of(config, (section, name)))}"
            print(said, flush=True)
            if log:
                append_log(log, said)
    return config


def plan_stages(config: Config, *, pretrain: int, sft: int, rl: int) -> dict[str, Stage]:
    """The stages of a run in order, those that are switched off with no steps.

    Args:
        config: epochs and batch sizes.
        pretrain, sft, rl: rows, or questions, that each has to learn from.

    Raises:
        ValueError: the critic's warm-up leaves no iteration to the policy.
    """
    epochs = {
        "pretrain": steps_per_epoch(pretrain, config.pretrain.batch_size),
        "sft": steps_per_epoch(sft, config.sft.batch_size),
        "rl": steps_per_epoch(rl, config.rl.rollout_batch_size),
    }
    scheduled = {"pretrain": config.pretrain.epochs, "sft": config.sft.schedule_epochs, "rl": config.rl.epochs}
    last = scheduled | {"sft": config.sft.stop_epoch if config.sft.schedule_epochs else 0}
    stages, offset = {}, 0
    for name, epoch in epochs.items():
        schedule, stop, critic = epoch * scheduled[name], epoch * last[name], 0
        if name == "rl":
            warmup = config.rl.critic_warmup
            if stop and stop <= warmup:
                raise ValueError(f"rl.critic_warmup is {warmup}, and reinforcement has {stop} iterations: take fewer")
            critic = policy_updates(config.rl, rl, stop)
            schedule = critic - policy_updates(config.rl, rl, min(stop, warmup))
        stages[name] = Stage(
            name=name, offset=offset, epoch=epoch, schedule=schedule, stop=stop, critic_schedule=critic
        )
        offset += stop
    return stages


def policy_updates(config: RlConfig, questions: int, iterations: int) -> int:
    """Optimizer steps of so many iterations; the last one of an epoch has as many as its questions make."""
    if not questions:
        return 0
    batch = config.rollout_batch_size
    per_epoch = steps_per_epoch(questions, batch)
    whole = iterations * config.updates(batch)
    lost = config.updates(batch) - config.updates(questions - (per_epoch - 1) * batch)
    return whole - iterations // per_epoch * lost


@contextlib.contextmanager
def open_sampler(
    config: Config,
    tokenizer: Any,
    stop: StopRequest,
    model_files: Path,
    *,
    splits: Sequence[str] = ("train", "dev", "test"),
    log: Path | None = None,
) -> Iterator[Sampler]:
    """Reads all problems, encodes the prompts of some splits, starts the workers, and closes everything at the end.

    Args:
        config: of the run; the model's shape is filled in.
        tokenizer: the model's.
        stop: asked between batches.
        model_files: folder that may have the model's own generation config, for the tokens that end a response.
        splits: of the problems, those that will be asked.
        log: of the run, which has what the console says.

    Raises:
        ValueError: bad problems, prompts that are too long, a mesh that does not fit the devices.
    """
    mesh = make_mesh(config.mesh, jax.devices())
    check_batches(config, shard_count(mesh, "batch"))
    reward, data, runner = config.reward, config.data, None
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(open_display(log))
        problems = read_problem_sets(config, display.message)
        kinds = {problem.answer_kind for split in splits for problem in problems[split]}
        judged = {"latex": "comparisons of expressions", "scored": "the scorers of tasks"}
        contained = ["programs"] * (data.cot == "program") + [text for kind, text in judged.items() if kind in kinds]
        own = [given for given in reward.functions.values() if isinstance(given, dict) and given.get("contained")]
        contained += ["reward functions"] * bool(own)
        if contained:
            runner = stack.enter_context(make_runner(reward))
            display.message(f"{', '.join(contained)}: contained by {', '.join(runner.start()) or 'nothing'}")
        functions = load_functions(reward.functions, runner)
        prompts = {
            split: encode_for_sampling(problems[split], config, tokenizer, split, display.message) for split in splits
        }
        everywhere = dataclasses.replace(config, distributed=DistributedConfig())
        tokens = {split: [prompt.tokens.tobytes() for prompt in rows] for split, rows in prompts.items()}
        require_equal({"settings": everywhere, "problems": problems, "tokenizer": tokens})
        ids = special_ids(tokenizer, end_tokens(model_files), data.templates.target_end)
        for line in prompt_lines(config, tokenizer, problems, prompts):
            display.message(line)
        compiled = CompiledSteps(steps(config, mesh, ids=ids), say=display.message)
        yield Sampler(
            model=Model(config=config, mesh=mesh, ids=ids, compiled=compiled, stop=stop),
            tokenizer=tokenizer,
            problems=problems,
            prompts=prompts,
            verdicts=functools.partial(
                verdicts_of, cot=data.cot, answer_trigger=data.templates.answer_trigger, config=reward, runner=runner
            ),
            runner=runner,
            display=display,
            functions=functions,
        )


def open_display(log: Path | None) -> ProgressDisplay:
    """What process 0 shows, and writes to a run's log, which begins with the command."""
    display = ProgressDisplay(show=jax.process_index() == 0, log=log)
    display.log(f"$ {command_line()}")
    return display


def prompt_lines(
    config: Config, tokenizer: Any, problems: Mapping[str, list[Problem]], prompts: Mapping[str, list[Prompt]]
) -> Iterator[str]:
    """Yields what is said of prompts once: the first as it is, what ends its answer, and whether BOS may be missing.

    Args:
        config: of the run, its templates filled in.
        tokenizer: the model's.
        problems, prompts: by split.
    """
    templates = config.data.templates
    for split, rows in prompts.items():
        if rows:
            text = tokenizer.decode(rows[0].tokens, clean_up_tokenization_spaces=False)
            end = f", answers end with {templates.target_end!r}" if templates.target_end else ""
            tokens = f"{len(rows[0].tokens)} tokens"
            yield f"prompt of {split}'s `{problems[split][rows[0].problem].id}`, {tokens}{end}: {text!r}"
            break
    if warning := bos_warning(templates, tokenizer):
        yield warning


@contextlib.contextmanager
def open_run(config: Config, tokenizer: Any, stop: StopRequest) -> Iterator[Run]:
    """Opens a sampler on all problems, encodes what is trained on, takes up the last resume point.

    Raises:
        ValueError: bad problems, rows that are too long, a mesh that does not fit the devices, a critic's warm-up that
            is longer than reinforcement.
        OSError: no room for the checkpoints.
    """
    with contextlib.ExitStack() as stack:
        run_dir = Path(config.run_dir)
        sampler = stack.enter_context(open_sampler(config, tokenizer, stop, run_dir / "model", log=run_dir / LOG_FILE))
        log, problems, mesh = sampler.display.message, sampler.problems, sampler.model.mesh
        examples = {
            stage: encode_for_training(problems[split], config, tokenizer, stage, settings, log)
            for stage, split, settings in (("pretrain", "pretrain", config.pretrain), ("sft", "train", config.sft))
        }
        for stage, split in (("pretrain", "pretrain"), ("sft", "train")):
            if examples[stage]:
                check_annotations(sampler, examples[stage], split)
        contents = contents_of(config, problems, sampler.prompts, examples)
        stages = plan_stages(
            config, pretrain=len(examples["pretrain"]), sft=len(examples["sft"]), rl=len(sampler.prompts["train"])
        )
        if warning := other_base(config.model):
            log(warning)
        model = sampler.model.with_schedules(
            {**{name: stage.schedule for name, stage in stages.items()}, "critic": stages["rl"].critic_schedule}
        )
        policy = Policy(config.model, mesh, config.rl.separate_critic)
        largest = abstract_stage(policy, mesh, config.rl.optimizer, 1, value_head=True)
        models = 3 * config.checkpoint.keep_best + 3  # of SFT and RL, one to be replaced each; pretrain, warmup, sft
        records = stack.enter_context(
            open_records(config, sampler.display, stages=stages, contents=contents, state=largest, models=models)
        )
        yield Run(records, dataclasses.replace(sampler, model=model), examples, stages)


def other_base(model: ModelConfig) -> str:
    """A warning where the adapter of `model.lora.path` says that it belongs to another model than `model.path`."""
    folder = Path(model.lora.path)
    if not model.lora.path or not folder.is_dir():  # of the hub, or gone since the run began
        return ""
    base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base or Path(base).name == Path(model.path).name:
        return ""
    return f"warning: the adapter {model.lora.path} says that it belongs to {base}, and model.path is {model.path}"


def check_annotations(sampler: Sampler, examples: Sequence[Example], split: str, count: int = 32) -> None:
    """Judges some chains of thought that are to be learned as if they had been sampled, and says if they are not right.

    Args:
        sampler: has the problems and judges.
        examples: what is learned.
        split: of the problems.
        count: chains judged, evenly spread.

    Raises:
        ValueError: none of them gives the answer of its problem; with an example.
    """
    config = sampler.config.data
    judged_by_answer = [row for row in examples if sampler.problems[split][row.problem].has_gold]
    rows = judged_by_answer[:: max(1, len(judged_by_answer) // count)][:count]
    problems = [sampler.problems[split][row.problem] for row in rows]
    targets = [target_text(problem, config.templates, config.cot) for problem in problems]
    texts = [before(target, sampler.config.generation.stop) for target in targets]
    judged = on_process_zero(lambda: sampler.verdicts(problems, texts))
    wrong = [i for i, verdict in enumerate(judged) if verdict.outcome != "correct"]
    if not rows or len(wrong) < len(rows) / 2:
        return
    problem, text, verdict = problems[wrong[0]], texts[wrong[0]], judged[wrong[0]]
    said = (
        f"{len(wrong)} of {len(rows)} annotated chains of thought of {split} do not give their answers as "
        f"data.cot: {config.cot}, such as that of `{problem.id}` ({verdict.outcome}, gold {problem.answer!r}): "
        f"{text[-300:]!r}"
    )
    if len(wrong) == len(rows):
        raise ValueError(f"{said}; `python -m reft_jax.data` says more, and data.cot tells programs from prose")
    sampler.display.message(f"warning: {said}")


def contents_of(
    config: Config,
    problems: Mapping[str, list[Problem]],
    prompts: Mapping[str, list[Prompt]],
    examples: Mapping[str, list[Example]],
) -> dict[str, str]:
    """Digests of what a run learns from and is measured on, by the key that says where it is read.

    Args:
        config: of the run.
        problems, prompts: by split.
        examples: by stage.
    """
    own_dev = config.data.dev.kind != "none"
    read = {
        "data.train": problems["train"] + ([] if own_dev else problems["dev"]),
        "data.dev": problems["dev"] if own_dev else [],
        "data.test": problems["test"],
        "pretrain.source": problems["pretrain"],
    }
    tokens = [prompt.tokens.tobytes() for rows in prompts.values() for prompt in rows]
    tokens += [part.tobytes() for rows in examples.values() for row in rows for part in (row.prompt, row.response)]
    return {key: digest(value) for key, value in read.items()} | {"model.tokenizer": digest(tokens)}


def make_runner(reward: RewardConfig) -> ProgramRunner:
    """The pool that runs programs, as configured; nothing is started yet."""
    return ProgramRunner(
        reward.workers,
        reward.program_timeout_s,
        reward.program_memory_mb,
        deadline=reward.batch_deadline_s,
        sandbox=reward.sandbox,
    )
