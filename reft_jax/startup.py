"""From a config to a `Run`: everything that can be wrong with files, settings and devices is found here, early."""

import contextlib
import dataclasses
import fcntl
import functools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import yaml

from reft_jax.checkpoint import Checkpoints
from reft_jax.config import (
    Config,
    DistributedConfig,
    ModelConfig,
    RewardConfig,
    SupervisedConfig,
    differences,
    to_dict,
)
from reft_jax.console import Progress
from reft_jax.data.batches import Example, OverlongCount, Prompt, encode_examples, encode_prompts
from reft_jax.data.readers import is_within, read_sets, shared_questions
from reft_jax.data.tokenizers import load_tokenizer, special_ids
from reft_jax.metrics import MetricsWriter, run_info
from reft_jax.models import hf
from reft_jax.models.policy import Policy
from reft_jax.problem import Problem
from reft_jax.processes import StopRequest, on_first, require_equal
from reft_jax.reward.functions import load_functions
from reft_jax.reward.programs import ProgramRunner
from reft_jax.reward.score import score
from reft_jax.run import Run, Tally
from reft_jax.sampler import Sampler
from reft_jax.sharding import make_mesh, shard_count
from reft_jax.train_state import TrainState, abstract_params, abstract_state, make_optimizer
from reft_jax.validation import missing_files

FREE_KEYS = ("run_dir", "mesh", "distributed", "checkpoint", "logging", "allow_changed", "generation.weights")
"""Settings that may change between the parts of one run: they do not change what it computes, but for rounding."""

Say = Callable[[str], None]


def configure_jax(config: Config) -> None:
    """Settings of JAX that must be made before any device is asked for."""
    if config.mesh.fake_cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.mesh.fake_cpu_devices)
    if config.logging.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.logging.compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "float64" in (config.model.dtype, config.model.param_dtype):
        jax.config.update("jax_enable_x64", True)


def require_files(config: Config) -> None:
    """Refuses a config that names files which are not there.

    Raises:
        FileNotFoundError: naming the key.
    """
    for message in missing_files(config):
        raise FileNotFoundError(message)


@contextlib.contextmanager
def own_directory(directory: Path) -> Iterator[None]:
    """Makes the run's folder and keeps other runs out of it; the lock ends with the process, however that ends.

    Raises:
        OSError: another run is at work in it, or it cannot be made or written to.
    """
    held: list[TextIO] = []

    def lock() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        held.append((directory / ".lock").open("a"))
        try:
            fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"run_dir {directory} is in use by another run: wait for it, or name another") from None

    try:
        on_first(lock)
        yield
    finally:
        for file in held:
            file.close()


def prepare(config: Config) -> tuple[Config, Any]:
    """The config with the model's shape filled in, and the tokenizer; claims the run's folder.

    Raises:
        FileNotFoundError: naming the key, when a file of the config is missing.
        ValueError: the folder holds a run of other settings, or the model does not suit the tokenizer.
    """
    require_files(config)
    tokenizer = load_tokenizer(config.model.tokenizer or config.model.path, config.model.revision)
    config = dataclasses.replace(config, model=resolve_model(config.model, len(tokenizer)))
    check_lengths(config)
    on_first(lambda: claim_directory(config, tokenizer))
    return config, tokenizer


def resolve_model(config: ModelConfig, tokenizer_size: int) -> ModelConfig:
    """The model's config with its decoder's shape filled in from the checkpoint or the tokenizer.

    Raises:
        ValueError: the tokenizer has ids that the embedding lacks.
    """
    if config.path:
        own = hf.decoder_config(hf.resolve(config.path, config.revision))
        decoder = dataclasses.replace(own, vocab_multiple=config.decoder.vocab_multiple)
    else:
        decoder = dataclasses.replace(config.decoder, vocab_size=config.decoder.vocab_size or tokenizer_size)
    if decoder.vocab_size < tokenizer_size:
        raise ValueError(f"the tokenizer has {tokenizer_size} tokens, the model's embedding only {decoder.vocab_size}")
    return dataclasses.replace(config, decoder=decoder)


def check_lengths(config: Config) -> None:
    """Refuses buckets that are longer than the model's positions.

    Raises:
        ValueError: naming the keys.
    """
    lengths = {}
    if not config.only_reward_model:
        lengths["generation"] = max(config.generation.prompt_buckets) + config.generation.max_response
    stages = (("pretrain", config.pretrain.epochs, config.pretrain), ("sft", config.sft.schedule_epochs, config.sft))
    lengths |= {name: max(s.prompt_buckets) + max(s.response_buckets) for name, on, s in stages if on}
    positions = f"{config.model.decoder.max_positions} positions (model.decoder.max_positions)"
    for name, length in lengths.items():
        if length > config.model.decoder.max_positions:
            response = "max_response" if name == "generation" else "response_buckets"
            raise ValueError(
                f"{name}.prompt_buckets and {name}.{response} come to {length} tokens, but the model has {positions}"
            )
    length = max(config.reward_model.row_buckets)
    if config.reward_model.samples and length > config.model.decoder.max_positions:
        raise ValueError(f"reward_model.row_buckets come to {length} tokens, but the model has {positions}")


def claim_directory(config: Config, tokenizer: Any) -> None:
    """Writes config, versions and tokenizer into the run's folder; a run that has checkpoints there must have the same.

    Raises:
        ValueError: naming the keys that differ and are not allowed to.
    """
    directory, settings = Path(config.run_dir), to_dict(config)
    path = directory / "config.yaml"
    if path.exists() and (directory / "checkpoints").exists():
        among = lambda key, names: any(key == name or key.startswith(name + ".") for name in names)
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
        changed = [key for key in differences(old, settings) if not among(key, FREE_KEYS)]
        refused = [key for key in changed if not among(key, config.allow_changed)]
        if refused:
            raise ValueError(
                f"{directory} holds a run with other settings ({', '.join(refused)}): name a fresh run_dir, or name "
                "these keys in allow_changed to go on with the new values"
            )
        if not changed:
            return
    else:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "run.json").write_text(json.dumps(run_info(), indent=2) + "\n", encoding="utf-8")
        tokenizer.save_pretrained(directory / "tokenizer")
        if config.model.path:  # an export needs them again
            hf.copy_config_files(hf.resolve(config.model.path, config.model.revision), directory / "model")
    partial = path.with_suffix(".partial")
    partial.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    partial.replace(path)


@contextlib.contextmanager
def open_sampler(
    config: Config,
    tokenizer: Any,
    stop: StopRequest,
    model_files: Path,
    *,
    splits: Sequence[str] = ("train", "dev", "test"),
    prefix: str = "",
    end_before: str = "",
) -> Iterator[Sampler]:
    """Reads all problems, encodes the prompts of some splits, starts the workers, and closes everything at the end.

    Args:
        config: of the run; the model's shape is filled in.
        tokenizer: the model's.
        stop: asked between batches.
        model_files: folder that may have the model's own generation config, for the tokens that end a response.
        splits: of the problems, those that will be asked.
        prefix: before every prompt, see `few_shot_prefix`.
        end_before: see `Sampler`.

    Raises:
        ValueError: bad problems, prompts that are too long, a mesh that does not fit the devices.
    """
    mesh = make_mesh(config.mesh, jax.devices())
    check_batches(config, shard_count(mesh, "batch"))
    reward, data, runner = config.reward, config.data, None
    with contextlib.ExitStack() as stack:
        console = stack.enter_context(Progress(show=jax.process_index() == 0))
        if data.cot == "program":
            runner = stack.enter_context(make_runner(reward))
            console.message(f"programs: contained by {', '.join(runner.start()) or 'nothing'}")
        problems = read_problem_sets(config, console.message)
        prompts = {
            split: encode_for_sampling(problems[split], config, tokenizer, split, console.message, prefix)
            for split in splits
        }
        everywhere = dataclasses.replace(config, distributed=DistributedConfig())
        tokens = {split: [prompt.tokens.tobytes() for prompt in rows] for split, rows in prompts.items()}
        require_equal({"settings": everywhere, "problems": problems, "tokenizer": tokens})
        yield Sampler(
            config=config,
            mesh=mesh,
            tokenizer=tokenizer,
            ids=special_ids(tokenizer, hf.end_tokens(model_files)),
            problems=problems,
            prompts=prompts,
            score=functools.partial(
                score, cot=data.cot, answer_trigger=data.templates.answer_trigger, config=reward, runner=runner
            ),
            runner=runner,
            console=console,
            stop=stop,
            end_before=end_before,
        )


@contextlib.contextmanager
def open_run(config: Config, tokenizer: Any, stop: StopRequest) -> Iterator[Run]:
    """Opens a sampler on all problems, encodes what is trained on, takes up the last resume point.

    Raises:
        ValueError: bad problems, rows that are too long, a mesh that does not fit the devices.
        OSError: no room for the checkpoints.
    """
    functions = load_functions(config.reward.functions)
    with contextlib.ExitStack() as stack:
        sampler = stack.enter_context(open_sampler(config, tokenizer, stop, Path(config.run_dir) / "model"))
        say, problems = sampler.console.message, sampler.problems
        examples = {
            stage: encode_for_training(problems[split], config, tokenizer, stage, settings, say)
            for stage, split, settings in (("pretrain", "pretrain", config.pretrain), ("sft", "train", config.sft))
        }
        policy = Policy(config.model, sampler.mesh, config.rl.critic == "separate")
        params = abstract_params(policy, sampler.mesh, value_head=True)
        state = abstract_state(params, make_optimizer(config.rl.optimizer, 1), sampler.mesh)
        models = 3 * config.checkpoint.keep_best + 3  # of SFT and PPO, one to be replaced each; pretrain, warmup, sft
        records = stack.enter_context(open_records(config, sampler.console, state=state, models=models))
        run = Run(
            **{field.name: getattr(sampler, field.name) for field in dataclasses.fields(sampler)},
            examples=examples,
            functions=functions,
            **vars(records),
        )
        run.link_best()
        yield run


@dataclasses.dataclass(frozen=True)
class Records:
    """What a run's folder holds of it, as its last resume point left it; fields as in `Run`."""

    checkpoints: Checkpoints
    writer: MetricsWriter
    tally: Tally
    resumed_step: int | None


@contextlib.contextmanager
def open_records(config: Config, console: Progress, *, state: TrainState, models: int) -> Iterator[Records]:
    """Takes up the last resume point of the run's folder, and cuts its records back to it.

    Args:
        config: says where the folder is and what is kept.
        console: told where the run goes on.
        state: abstract, the largest that the run saves.
        models: how many it keeps at most besides.

    Raises:
        ValueError: a record file holds a line that cannot be read.
        OSError: no room for the checkpoints.
    """
    directory, keep = Path(config.run_dir), config.checkpoint.keep_last
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(directory / "checkpoints", keep_last=keep, say=console.message))
        step, tally = None, Tally()
        if (latest := checkpoints.latest()) is not None:
            step, tally = latest[0], Tally(**latest[1])
            console.message(f"continuing after step {step}: {tally.stage}, {tally.stage_step} steps done")
        else:
            on_first(lambda: check_space(directory, state, points=keep + 1, models=models))
        board, first = config.logging.tensorboard, jax.process_index() == 0
        writer = stack.enter_context(
            MetricsWriter(directory, write=first, tensorboard=board, resume_step=step, evaluated=not tally.unread)
        )
        yield Records(checkpoints, writer, tally, step)


def check_space(directory: Path, state: TrainState, *, points: int, models: int) -> None:
    """Refuses a disk that the run's checkpoints will not fit on: `points` states, and parameters of `models`.

    Raises:
        OSError: naming the folder, what is free and what is needed.
    """
    size = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    needed = points * size(state) + models * size(state.params)
    free = shutil.disk_usage(directory).free
    if free < needed:
        gigabytes = "{:.1f} GB".format
        raise OSError(
            f"run_dir {directory} has {gigabytes(free / 1e9)} free and the run's checkpoints take up to "
            f"{gigabytes(needed / 1e9)} ({points} resume points of {gigabytes(size(state) / 1e9)}, {models} models of "
            f"{gigabytes(size(state.params) / 1e9)}): make room, name another run_dir, or lower checkpoint.keep_last"
        )


def make_runner(reward: RewardConfig) -> ProgramRunner:
    """The pool that runs programs, as configured; nothing is started yet."""
    return ProgramRunner(
        reward.workers,
        reward.program_timeout,
        reward.program_memory,
        deadline=reward.batch_timeout,
        sandbox=reward.sandbox,
    )


def check_batches(config: Config, shards: int) -> None:
    """Refuses batches that the mesh cannot split evenly.

    Raises:
        ValueError: naming the key.
    """
    sizes = {}
    if not config.only_reward_model:
        sizes["evaluation.batch_size"] = config.evaluation.batch_size
    if config.pretrain.epochs:
        sizes["pretrain.microbatch_size"] = config.pretrain.microbatch_size
    if config.sft.schedule_epochs:
        sizes["sft.microbatch_size"] = config.sft.microbatch_size
    if config.rl.epochs:
        sizes["rl.microbatch_size"] = config.rl.microbatch_size
    if config.reward_model.samples:
        sizes["reward_model.microbatch_size"] = config.reward_model.microbatch_size
    for key, size in sizes.items():
        if size % shards:
            raise ValueError(f"{key} ({size}) must be a multiple of mesh.data * mesh.fsdp ({shards})")


def read_problem_sets(config: Config, say: Say) -> dict[str, list[Problem]]:
    """Problems by split; questions that stand in two splits are reported, not removed."""
    sets = read_sets(config)
    train, dev, test, pretrain = (sets[split] for split in ("train", "dev", "test", "pretrain"))
    if (config.sft.schedule_epochs or config.rl.epochs) and not (train and dev):
        raise ValueError(
            f"data.train has {len(train)} problems to train on and {len(dev)} for dev: give more, or change "
            f"data.dev_fraction ({config.data.dev_fraction}) or data.dev"
        )
    say(f"problems: {len(train)} train, {len(dev)} dev, {len(test)} test, {len(pretrain)} pretrain")
    for one, other in (("train", "test"), ("train", "dev"), ("dev", "test")):
        shared = shared_questions(sets[one], sets[other])
        if (one, other) == ("dev", "test") and is_within(dev, test):
            say("warning: dev is part of test: models are chosen on test, and their accuracy there is test-best")
        elif shared:
            say(f"warning: {len(shared)} questions of {one} are in {other} too, such as {', '.join(shared[:5])}")
    return sets


def encode_for_sampling(
    problems: list[Problem], config: Config, tokenizer: Any, split: str, say: Say, prefix: str = ""
) -> list[Prompt]:
    """Prompts of a split, each behind `prefix`, forced header included."""
    data, longest = config.data, max(config.generation.prompt_buckets)
    prompts, count = encode_prompts(
        problems, tokenizer, data.templates, data.cot, max_prompt=longest, overlong=data.overlong, prefix=prefix
    )
    _report(count, f"{split} prompts", say)
    return prompts


def encode_for_training(
    problems: list[Problem], config: Config, tokenizer: Any, stage: str, settings: SupervisedConfig, say: Say
) -> list[Example]:
    """Rows of a supervised stage; none where nothing learns them."""
    if not (config.pretrain.epochs if stage == "pretrain" else config.learns_annotations):
        return []
    examples, count = encode_examples(
        problems,
        tokenizer,
        config.data.templates,
        config.data.cot,
        max_prompt=max(settings.prompt_buckets),
        max_response=max(settings.response_buckets),
        overlong=config.data.overlong,
        stage=stage,
    )
    _report(count, f"{stage} rows", say)
    return examples


def _report(count: OverlongCount, name: str, say: Say) -> None:
    if count != OverlongCount():
        say(f"{name}: {count.prompts} prompts and {count.targets} targets are too long; {count.dropped} rows dropped")
