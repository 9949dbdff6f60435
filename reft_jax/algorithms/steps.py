"""The steps that a run compiles: the only list of them, which the run itself and `preflight` both take.

pretrain, sft              an optimizer step on annotated chains of thought
layout                     the weights as sampling wants them
slots, prefill, decode     sampling at any temperature: room for rows, prompts read into it, the next tokens of all rows
..._filtered               the same for the top-k or the top-p of evaluation
prefill_shared             prompts of which several samples are drawn
experience, update         scoring of a rollout, an optimizer step on it
critic_experience, _update the same in the critic's warm-up
reward_model, classify     an optimizer step of the reward model, and P(correct) of completions
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any, cast

import jax.numpy as jnp
from jax.sharding import Mesh

from reft_jax.algorithms import classification, ppo, rollout, self_training, sft
from reft_jax.algorithms.rollout import build_layout, needs_layout
from reft_jax.config import Config, LoraConfig, ModelConfig, RlConfig, SupervisedConfig
from reft_jax.data.tokenizers import SpecialIds
from reft_jax.models.policy import Policy
from reft_jax.parallel.compilation import Bucket, Step
from reft_jax.parallel.sharding import shard_count

ANY_IDS = SpecialIds(pad=1, eos=2, ends=(2,))
ANY_SCHEDULE = 1000


def steps(
    config: Config, mesh: Mesh, *, ids: SpecialIds = ANY_IDS, schedules: Mapping[str, int] | None = None
) -> dict[str, Step]:
    """Every step of the config by name; nothing is built or compiled yet.

    Args:
        config: with the model's shape filled in.
        mesh: where the steps run.
        ids: the tokenizer's.
        schedules: optimizer steps of the learning-rate schedule of each stage, and of the `critic`. Like `ids` they are
            constants in a step and change neither its size nor its arguments: without them there are others in their
            place.

    Raises:
        ValueError: the weights cannot be laid out for sampling as asked; names the parameter.
    """
    model, rl = config.model, config.rl
    total = lambda stage: (schedules or {}).get(stage, ANY_SCHEDULE)
    found: dict[str, Step] = {}
    if config.pretrain.epochs:  # there, a fresh model learns with all its weights
        whole = dataclasses.replace(model, lora=LoraConfig())
        found["pretrain"] = _supervised(whole, config.pretrain, mesh, total("pretrain"))
    if config.sft.schedule_epochs:
        found["sft"] = _supervised(model, config.sft, mesh, total("sft"))
    if config.needs_sampling:
        layout = (model, mesh, config.generation.weight_layout, config.generation.scan_layers)
        if needs_layout(*layout):
            found["layout"] = Step(functools.partial(build_layout, *layout), ((),))
        found |= _sampling_steps(config, sampling_of(config, mesh, ids))
        if rl.epochs:
            found |= _reinforcement(config, mesh, total("rl"), total("critic"))
    if config.reward_model.samples:  # in a run of its own
        settings, buckets = config.reward_model, _each(config.reward_model.row_buckets)
        learn = lambda length: classification.build_step(
            model, settings, mesh, total_steps=total("reward_model"), length=length
        )
        classify = lambda length: classification.build_classify(
            model, mesh, batch=settings.microbatch_size, length=length
        )
        found["reward_model"] = Step(learn, buckets, settings.batch_size)
        found["classify"] = Step(classify, buckets, settings.microbatch_size)
    return found


def _each(lengths: tuple[int, ...]) -> tuple[Bucket, ...]:
    return tuple((length,) for length in lengths)


def _supervised(model: ModelConfig, settings: SupervisedConfig, mesh: Mesh, total_steps: int) -> Step:
    build = lambda prompt, response: sft.build_step(
        model, settings, mesh, total_steps=total_steps, prompt=prompt, response=response
    )
    return Step(
        build, tuple(itertools.product(settings.prompt_buckets, settings.response_buckets)), settings.batch_size
    )


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The sizes of sampling on a mesh."""

    policy: Policy
    limits: rollout.Limits
    per_device: int
    """Slots of a device."""
    shards: int
    """Devices, or groups of them along `tensor`, that split a batch between them."""
    positions: int
    """Of the cache of a slot."""

    @property
    def slots(self) -> int:
        """Rows in flight."""
        return self.per_device * self.shards

    @property
    def blocks(self) -> int:
        """Pieces that the slots are split into: with `sharded` weights fewer than there are devices."""
        return shard_count(cast(Mesh, self.policy.mesh), "batch", self.policy.layout)

    def admission(self, samples: int) -> tuple[int, int]:
        """How many prompts a call of `prefill` reads for a block, and how many slots of it they fill."""
        prompts, rows = rollout.admission_size(self.per_device, samples)
        devices = self.shards // self.blocks
        return prompts * devices, rows * devices

    @property
    def reaches(self) -> tuple[int, ...]:
        """How many positions a call of `decode` may read."""
        return rollout.reaches(self.positions, cast(Mesh, self.policy.mesh).devices.flat[0].platform)

    def step(self, name: str, how: rollout.SamplingParams, samples: int = 1) -> str:
        """What `prefill` or `decode` is called where tokens are drawn so, and so many samples share a prompt."""
        return name + "_shared" * (samples > 1) + "_filtered" * how.filters

    @property
    def wide(self) -> Any:
        """The type of log-probs."""
        return jnp.promote_types(self.policy.config.dtype, jnp.float32)


def sampling_of(config: Config, mesh: Mesh, ids: SpecialIds) -> Sampling:
    """The sizes of sampling.

    Raises:
        ValueError: the weights cannot be laid out for sampling as asked; names the parameter.
    """
    generation = config.generation
    policy = rollout.rollout_policy(config.model, mesh, generation.weight_layout, scan_layers=generation.scan_layers)
    shards = shard_count(mesh, "batch")
    per_device = rollout.slots_per_device(policy, generation)
    if config.rl.epochs and not generation.slots:
        per_device = min(per_device, -(-config.rl.completions_per_iteration // shards))
    return Sampling(
        policy=policy,
        limits=rollout.Limits(generation.max_new_tokens, ids.ends),
        per_device=per_device,
        shards=shards,
        positions=max(generation.prompt_buckets) + generation.max_new_tokens,
    )


def _sampling_steps(config: Config, sampling: Sampling) -> dict[str, Step]:
    """The steps that sample: `prefill` by the prompt's length, `decode` by how much of the cache it reads."""
    sizes = (sampling.policy, sampling.slots, sampling.positions)
    evaluation = rollout.SamplingParams(top_k=config.evaluation.top_k, top_p=config.evaluation.top_p)

    def prefill(how: rollout.SamplingParams, samples: int) -> Step:
        prompts, rows = (n * sampling.blocks for n in sampling.admission(samples))
        build = lambda prompt: rollout.build_prefill(
            *sizes, sampling.limits, how, prompts=prompts, rows=rows, prompt=prompt
        )
        return Step(build, _each(config.generation.prompt_buckets), prompts)

    def decode(how: rollout.SamplingParams) -> Step:
        build = lambda reach: rollout.build_decode(*sizes, sampling.limits, how, reach=reach)
        return Step(build, _each(sampling.reaches), sampling.slots)

    # Reinforcement draws from the whole policy; without it, it is `sample` that may ask for several samples.
    drawn = rollout.SamplingParams() if config.rl.epochs else evaluation
    found = {"slots": Step(functools.partial(rollout.build_slots, *sizes), ((),))}
    for how, samples in ((drawn, config.rl.samples_per_question), (evaluation, 1)):
        found[sampling.step("prefill", how, samples)] = prefill(how, samples)
        found[sampling.step("decode", how)] = decode(how)
    return found


def _reinforcement(config: Config, mesh: Mesh, total_steps: int, critic_steps: int) -> dict[str, Step]:
    """The learning steps of an algorithm: `update`, and `experience` where completions are scored before.

    The critic's warm-up has both as `critic_update` and `critic_experience`.
    """
    model, rl, generation = config.model, config.rl, config.generation
    prompts, response = _each(generation.prompt_buckets), generation.max_new_tokens
    sizes: dict[str, Any] = {"temperature": generation.temperature, "response": response}
    if rl.algorithm == "self_training":
        build = lambda prompt, *gold: self_training.build_update(
            model, rl, mesh, total_steps=total_steps, prompt=prompt, response=response, gold=gold or None
        )
        gold = itertools.product(config.sft.prompt_buckets, config.sft.response_buckets)
        pairs = itertools.product(prompts, gold if rl.self_training.gold_weight else [()])
        buckets = tuple((*prompt, *lengths) for prompt, lengths in pairs)
        return {"update": Step(build, buckets, rl.minibatch_size, response)}
    sizes["buckets"] = generation.prompt_buckets
    sizes_of_update = {**sizes, "total_steps": total_steps, "critic_steps": critic_steps}

    def made(rl: RlConfig, *, critic_alone: bool) -> tuple[Step, Step]:
        score = lambda prompt: ppo.build_experience(model, rl, mesh, prompt=prompt, **sizes)
        update = lambda prompt: ppo.build_update(
            model, rl, mesh, prompt=prompt, critic_alone=critic_alone, **sizes_of_update
        )
        return (
            Step(score, prompts, rl.completions_per_iteration, response),
            Step(update, prompts, rl.minibatch_size, response),
        )

    found = dict(zip(("experience", "update"), made(rl, critic_alone=False)))
    if rl.critic_warmup:
        warming = made(ppo.monte_carlo(rl), critic_alone=True)
        found |= dict(zip(("critic_experience", "critic_update"), warming))
    return found
