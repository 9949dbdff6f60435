"""An iteration of GRPO beside other trainers, each in an environment of its own: same model, questions and core.

    python -m benchmarks.trainers --trl TRL/bin/python --tunix TUNIX/bin/python [--model DIR]

The pythons are of environments that have `trl` and `google-tunix`; DIR is a Hugging Face directory of a Llama, by
default one of width 256 and 4 layers with random weights, whose tokens are bytes.
An iteration samples, judges, and makes one update, without a KL, in float32. Every trainer asks a reward function once
an iteration, and that function is the clock: what is compared are the CPU seconds from one call to the next, the least
of some, after the first, in which things are compiled. A side that fails is shown with its last line.
"""

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Work:
    """What each side does."""

    model: str
    """Hugging Face directory."""
    questions: int = 8
    """Of an iteration."""
    samples: int = 4
    """Of a question."""
    new_tokens: int = 48
    """Of a response; few end before."""
    iterations: int = 6
    """The first does not count."""

    @property
    def rows(self) -> int:
        """Completions of an iteration."""
        return self.questions * self.samples

    def prompts(self) -> list[str]:
        """Questions of more than as many iterations."""
        first = "Tom has {} apples and buys {} more. He gives {} of them to his sister. How many apples has he now?"
        return [first.format(7 + i, 5 + 2 * i, 3 + i) for i in range(2 * self.questions * self.iterations)]


def make_model(folder: str) -> str:
    """Writes the default model into a folder, and returns it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(["<end>", *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(letters) + 1,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def reward(completions: Sequence[str], **_: Any) -> list[float]:
    """Half of the completions are right: what they learn is not looked at."""
    with open(os.environ["CLOCK"], "a", encoding="utf-8") as clock:
        clock.write(json.dumps([len(completions), time.process_time()]) + "\n")
    return [float(i % 2) for i in range(len(completions))]


def ours(work: Work) -> None:
    """This package."""
    from reft_jax.train import main

    with tempfile.TemporaryDirectory() as folder:
        rows = [{"id": str(i), "question": text, "answer": "1"} for i, text in enumerate(work.prompts())]
        (Path(folder) / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings: dict[str, Any] = {
            "run_dir": f"{folder}/run",
            "model.path": work.model,
            "data.train.kind": "jsonl",
            "data.train.path": f"{folder}/train.jsonl",
            "data.dev_fraction": 0.05,
            "data.cot": "text",
            "data.templates.instruction": "{question}",
            "data.templates.cot_trigger": "",
            "sft.schedule_epochs": 0,
            "rl.algorithm": "grpo",
            "rl.kl_coef": 0,
            "rl.epochs": 1,
            "rl.rollout_batch_size": work.questions,
            "rl.samples_per_question": work.samples,
            "rl.minibatch_size": work.rows,
            "rl.microbatch_size": work.rows,
            "rl.update_epochs": 1,
            "generation.prompt_buckets": "auto",
            "generation.max_new_tokens": work.new_tokens,
            "reward.correct": 0,
            "reward.wrong": 0,
            "reward.functions": json.dumps({"benchmarks.trainers.reward": 1}),
            "logging.rollouts_every": 0,
        }
        main([text for key, value in settings.items() for text in (f"--{key}", str(value))])


def trl(work: Work) -> None:
    """TRL's GRPOTrainer."""
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            per_device_train_batch_size=work.rows,
            num_generations=work.samples,
            max_completion_length=work.new_tokens,
            max_steps=work.iterations,
            beta=0.0,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            model_init_kwargs={"dtype": "float32"},
        )
        rows = datasets.Dataset.from_dict({"prompt": work.prompts()})
        GRPOTrainer(model=work.model, reward_funcs=reward, args=config, train_dataset=rows).train()


def tunix(work: Work) -> None:
    """Tunix's GRPOLearner, with its own sampler."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from transformers import AutoTokenizer
    from tunix.models.llama3.model import ModelConfig
    from tunix.models.llama3.params import create_model_from_safe_tensors
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
    from tunix.rl.rollout.base_rollout import RolloutConfig

    said = json.loads((Path(work.model) / "config.json").read_text())
    heads = said["num_attention_heads"]
    config = ModelConfig(
        num_layers=said["num_hidden_layers"],
        vocab_size=said["vocab_size"],
        embed_dim=said["hidden_size"],
        hidden_dim=said["intermediate_size"],
        num_heads=heads,
        head_dim=said.get("head_dim") or said["hidden_size"] // heads,
        num_kv_heads=said["num_key_value_heads"],
        rope_theta=int(said.get("rope_theta") or said["rope_parameters"]["rope_theta"]),
        norm_eps=said["rms_norm_eps"],
        weight_tying=said["tie_word_embeddings"],
    )
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    longest = max(len(tokenizer(text)["input_ids"]) for text in work.prompts())
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 1), ("fsdp", "tp"))
    rollout = RolloutConfig(
        max_tokens_to_generate=work.new_tokens,
        max_prompt_length=longest,
        kv_cache_size=longest + work.new_tokens + 1,
        temperature=1.0,
        top_p=1.0,
        eos_tokens=[tokenizer.eos_token_id],
    )
    training = RLTrainingConfig(
        actor_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-7)),
        eval_every_n_steps=1000,
        max_steps=work.iterations,
        mini_batch_size=work.questions,
        train_micro_batch_size=work.questions,
    )
    cluster = ClusterConfig(
        role_to_mesh=dict.fromkeys((Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh),
        training_config=training,
        rollout_config=rollout,
    )
    with mesh:
        model = create_model_from_safe_tensors(work.model, config, mesh, jnp.float32)
        learner = GRPOLearner(
            RLCluster(actor=model, tokenizer=tokenizer, cluster_config=cluster),
            GRPOConfig(num_generations=work.samples, num_iterations=1, beta=0.0),
            reward_fns=reward,
        )
        texts, size = work.prompts(), work.questions
        learner.train([{"prompts": np.array(texts[i : i + size])} for i in range(0, size * work.iterations, size)])


SIDES: dict[str, Callable[[Work], None]] = {"reft_jax": ours, "trl": trl, "tunix": tunix}


def timed(line: Sequence[str], rows: int, iterations: int) -> tuple[list[float], str]:
    """(CPU seconds of each iteration but the first, the last line of what went wrong) of a process on one core.

    Args:
        line: the command, which has `reward` called once an iteration.
        rows: completions of an iteration; other calls do not count.
        iterations: how many count at most.
    """
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder) / "clock"
        environment = {**os.environ, "CLOCK": str(clock), "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
        core = {max(os.sched_getaffinity(0))}
        done = subprocess.run(
            line,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, core),
        )
        calls = [json.loads(text) for text in clock.read_text().splitlines()] if clock.exists() else []
    times = [at for count, at in calls if count == rows][:iterations]
    seconds = [after - before for before, after in itertools.pairwise(times[1:])]
    return seconds, "" if seconds else (done.stderr.strip() or "no iteration").splitlines()[-1]


def version(python: str, side: str) -> str:
    """Of the package that a side is."""
    name = {"tunix": "google-tunix"}.get(side, side)
    script = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run([python, "-c", script], capture_output=True, text=True).stdout.strip() or "not installed"


HEAD = """# Beside other trainers

Written by `python -m benchmarks.trainers`: CPU seconds of an iteration of GRPO, which samples, judges and makes one
update, by one process on one core. The ratio is what is worth quoting. A small model on a CPU is not what these
trainers were made for, and says nothing of several accelerators.

"""


def document(work: Work, model: str, found: Mapping[str, tuple[str, list[float], str]]) -> str:
    """What was measured, in Markdown."""
    least = {side: min(seconds) for side, (_, seconds, _) in found.items() if seconds}
    what = f"{model}, float32; {work.questions} questions x {work.samples} samples of {work.new_tokens} tokens, no KL."
    lines = [HEAD + what, "", "| trainer | version | CPU seconds | times ours |", "|---|---|---|---|"]
    for side, (number, seconds, failure) in found.items():
        ratio = f"{least[side] / least['reft_jax']:.2f}" if side in least and "reft_jax" in least else ""
        lines.append(f"| {side} | {number} | {f'{min(seconds):.2f}' if seconds else failure} | {ratio} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures every side and prints a table in Markdown; as `--side` does what one of them does."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hugging Face directory of a Llama")
    for side in ("trl", "tunix"):
        parser.add_argument(f"--{side}", help=f"python of an environment that has {side}")
    for field in dataclasses.fields(Work)[1:]:
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--out", help="file to write the table to")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        SIDES[given.side](Work(**json.loads(given.work)))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(given.model).resolve()) if given.model else make_model(folder)
        work = Work(model, given.questions, given.samples, given.new_tokens, given.iterations)
        for side, python in {"reft_jax": sys.executable, "trl": given.trl, "tunix": given.tunix}.items():
            if python:
                own = ["--side", side, "--work", json.dumps(dataclasses.asdict(work))]
                command = [python, "-m", "benchmarks.trainers", *own]
                found[side] = version(python, side), *timed(command, work.rows, work.iterations)
    text = document(work, "A Llama of width 256 and 4 layers" if not given.model else Path(given.model).name, found)
    if given.out:
        Path(given.out).write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
