"""The steps that a run compiles: the only list of them, which the run itself and `preflight` both take.

pretrain, sft              an optimizer step on annotated chains of thought
layout                     the weights as sampling wants them
rollout, evaluation        sampling, in reinforcement and elsewhere
experience, update         scoring of a rollout, an optimizer step on it
critic_experience, _update the same in the critic's warm-up
reward_model, classify     an optimizer step of the reward model, and P(correct) of completions
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from reft_jax.algorithms import classification, ppo, self_training, sft
from reft_jax.algorithms.rollout import SamplingParams, build_generate, build_layout, needs_layout
from reft_jax.config import Config, LoraConfig, ModelConfig, RlConfig, SupervisedConfig
from reft_jax.data.tokenizers import SpecialIds
from reft_jax.parallel.compilation import Bucket, Step

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
    model, rl, evaluation = config.model, config.rl, config.evaluation
    total = lambda stage: (schedules or {}).get(stage, ANY_SCHEDULE)
    found: dict[str, Step] = {}
    if config.pretrain.epochs:  # there, a fresh model learns with all its weights
        whole = dataclasses.replace(model, lora=LoraConfig())
        found["pretrain"] = _supervised(whole, config.pretrain, mesh, total("pretrain"))
    if config.sft.schedule_epochs:
        found["sft"] = _supervised(model, config.sft, mesh, total("sft"))
    if config.needs_sampling:
        layout = (model, mesh, config.generation.weight_layout)
        if needs_layout(*layout):
            found["layout"] = Step(functools.partial(build_layout, *layout), ((),))
        if rl.epochs:
            sampling = SamplingParams(config.generation.temperature)
            batch = rl.completions_per_iteration
            found["rollout"] = _generate(config, mesh, batch, sampling, ids, rl.samples_per_question)
            found |= _reinforcement(config, mesh, total("rl"), total("critic"))
        sampling = SamplingParams(evaluation.temperature, evaluation.top_k, evaluation.top_p)
        found["evaluation"] = _generate(config, mesh, evaluation.batch_size, sampling, ids)
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


def _generate(
    config: Config, mesh: Mesh, batch: int, sampling: SamplingParams, ids: SpecialIds, samples: int = 1
) -> Step:
    generation = config.generation
    build = lambda prompt: build_generate(
        config.model,
        mesh,
        batch=batch,
        prompt=prompt,
        max_new_tokens=generation.max_new_tokens,
        sampling=sampling,
        eos=ids.ends,
        pad=ids.pad,
        scan_layers=generation.scan_layers,
        weight_layout=generation.weight_layout,
        samples=samples,
    )
    return Step(build, _each(generation.prompt_buckets), batch, generation.max_new_tokens)


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
