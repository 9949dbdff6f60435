"""PPO on a model, data and reward of your own, with the package's functions: one device, one page.

    python examples/loop.py [MODEL]    # a Hugging Face folder; without it a tiny model is made: a minute on a CPU

The data are digits to count up from. Half of the annotations count down, so that the warm-up does both; the reward is
the share of numbers in their place. `reft train` has checkpoints, evaluation, many devices and much else beside this.
"""

import functools
import random
import sys
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from reft_jax import algorithms, data
from reft_jax.algorithms import ppo, sft
from reft_jax.config import DecoderConfig, MeshConfig, ModelConfig, OptimizerConfig, RlConfig, SftConfig, TemplateConfig
from reft_jax.models import Policy
from reft_jax.models.hf import load_decoder_params, resolve_model
from reft_jax.parallel import make_mesh
from reft_jax.problem import Problem

PROMPT, RESPONSE = 32, 12  # the longest, in tokens; a model of your own has other needs
TEMPLATES = TemplateConfig(instruction="count up from ", cot_trigger=" : ")  # what stands around a question
SFT = SftConfig(batch_size=32, microbatch_size=32, optimizer=OptimizerConfig(learning_rate=3e-3))
SIZES = {"rollout_batch_size": 128, "minibatch_size": 64, "microbatch_size": 64, "update_epochs": 1}
RL = RlConfig(**SIZES, vf_coef=1.0, gae_lambda=1.0, optimizer=OptimizerConfig(learning_rate=1e-3))


def problems(count: int) -> list[Problem]:
    """Questions with the response to learn in the warm-up; `columns` holds what the reward needs."""
    draw, made = random.Random(0), []
    for number in range(count):
        start, way = draw.randrange(10), draw.choice([1, -1])
        right, cot = ([str((start + sign * i) % 10) for i in range(1, 5)] for sign in (1, way))
        made.append(Problem(f"row_{number}", str(start), "", "none", " ".join(cot), {"right": right}))
    return made


def reward(problem: Problem, text: str) -> float:
    """The share of the numbers that stand in their place, and nothing where there are more or fewer."""
    said, right = text.split(), problem.columns["right"]
    return sum(a == b for a, b in zip(said, right)) / len(right) if len(said) == len(right) else 0.0


def tiny_model() -> tuple[ModelConfig, PreTrainedTokenizerFast]:
    """A small decoder whose tokens are characters."""
    letters = ["<end>", *sorted(set("count up from : 0123456789"))]
    tokens = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokens.decoder = decoders.Fuse()
    decoder = DecoderConfig(num_layers=2, rotary_dim=16, initializer_range=0.05)
    return ModelConfig(decoder=decoder), PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>")


def main(folder: str = "", warm_up: int = 100, iterations: int = 20) -> list[float]:
    """Trains, and returns the mean reward of each iteration."""
    model, tokenizer = (ModelConfig(path=folder), data.load_tokenizer(folder, "main")) if folder else tiny_model()
    model, mesh = resolve_model(model, tokenizer.get_vocab()), make_mesh(MeshConfig(), jax.devices()[:1])
    policy, ids, asked = Policy(model, mesh), data.special_ids(tokenizer), problems(1000)
    params = algorithms.init_params(policy, mesh, jax.random.key(0), value_head=True)
    params |= {"decoder": load_decoder_params(Path(folder), model)} if folder else {}
    encode = {"tokenizer": tokenizer, "templates": TEMPLATES, "cot": "text", "max_prompt": PROMPT, "overlong": "error"}
    prompt = {"prompt_buckets": [PROMPT], "pad_id": ids.pad}
    # The warm-up: likelihood of annotated responses.
    examples, _ = data.encode_examples(asked, **encode, max_response=RESPONSE, stage="sft")
    state = algorithms.init_state(params, algorithms.make_optimizer(SFT.optimizer, warm_up), mesh)
    learn = jax.jit(functools.partial(sft.update, policy, SFT, warm_up))
    for step in range(warm_up):
        batch = data.training_batch(examples, seed=1, step=step, batch_size=32, response_buckets=[RESPONSE], **prompt)
        state, _ = learn(state, batch)

    # Reinforcement. No step donates its arguments, so that the warm-up stays, as the reference.
    reference, prompts = {"decoder": state.params["decoder"]}, data.encode_prompts(asked, **encode)[0]
    total = iterations * RL.update_epochs * RL.rollout_batch_size // RL.minibatch_size
    state = algorithms.init_state(state.params, algorithms.make_optimizer(RL.optimizer, total), mesh)
    limits = {"max_new_tokens": RESPONSE, "sampling": algorithms.SamplingParams(), "eos": ids.ends, "pad": ids.pad}
    sample = jax.jit(functools.partial(algorithms.generate, policy, **limits))
    score = jax.jit(functools.partial(algorithms.make_experience, policy, RL, 1.0))
    update = jax.jit(functools.partial(ppo.update, policy, RL, 1.0, total, total))
    means: list[float] = []
    for number in range(iterations):
        batch = data.training_prompts(prompts, seed=2, step=number, batch_size=128, samples_per_question=1, **prompt)
        rollout = sample(state.params, batch, np.int32(3), np.int32(number))
        texts = tokenizer.batch_decode(np.asarray(rollout.sequences.responses), skip_special_tokens=True)
        earned = np.array([reward(asked[i], text) for i, text in zip(batch.problem, texts)], np.float32)
        experience, scored = score(state.params, reference, rollout, earned, earned == 1)
        for rows in np.random.default_rng(number).permutation(128).astype(np.int32).reshape(-1, RL.minibatch_size):
            state, _ = update(state, experience, rows)
        means.append(float(earned.mean()))
        print(f"iteration {number}: reward {means[-1]:.3f}, KL {scored['rl/kl_k3']:.4f} nats, {texts[0]!r}", flush=True)
    return means


if __name__ == "__main__":
    main(*sys.argv[1:2])
