"""From a config to a `Run`: everything that can be wrong with files, settings and devices is found here, early."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from reft_jax.config import (
    Config,
    DistributedConfig,
    ModelConfig,
    RewardConfig,
)
from reft_jax.console import Progress
from reft_jax.data.tokenizers import load_tokenizer, special_ids
from reft_jax.models import hf
from reft_jax.models.policy import Policy
from reft_jax.problem_sets import encode_for_sampling, encode_for_training, read_problem_sets
from reft_jax.processes import StopRequest, on_first, require_equal
from reft_jax.reward.functions import load_functions
from reft_jax.reward.programs import ProgramRunner
from reft_jax.reward.score import score
from reft_jax.run import Run
from reft_jax.run_directory import claim_directory, open_records
from reft_jax.sampler import Sampler
from reft_jax.sharding import fake_cpu_devices, make_mesh, shard_count
from reft_jax.train_state import abstract_params, abstract_state, make_optimizer
from reft_jax.validation import missing_files


def configure_jax(config: Config) -> None:
    """Settings of JAX that must be made before any device is asked for."""
    if config.mesh.fake_cpu_devices:
        fake_cpu_devices(config.mesh.fake_cpu_devices)
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
