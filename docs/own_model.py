"""A model and data of one's own, from files to an exported model, with nothing but what is made here:

    python -m docs.own_model FOLDER

A tiny model of Qwen2.5's shape with a chat template of its form, and questions whose solutions end in `\\boxed{}`,
through SFT and GRPO, an evaluation and an export that transformers reads. With a real model in `model.path` and real
rows, `FOLDER/own.yaml` is the config to begin with. It takes two minutes on two cores; the model is too small to
learn much.
"""

import itertools
import json
import random
import sys
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from reft_jax import evaluate, export, train
from reft_jax.data.__main__ import main as audit

CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}<|im_start|>system{{ '\\n' }}You are helpful.<|im_end|>{{ '\\n' }}"
    "{%- endif -%}{%- for message in messages -%}"
    "<|im_start|>{{ message.role }}{{ '\\n' }}{{ message.content }}<|im_end|>{{ '\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\\n' }}{%- endif -%}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WIDTH, LAYERS, HEADS, HIDDEN = 64, 2, 4, 128
VOCABULARY = 448  # more than the tokenizer has, as published models do

CONFIG = {
    "model": {"path": "MODEL"},
    "data": {
        "cot": "text",
        "train": {
            "kind": "jsonl",
            "path": "ROWS",
            "answer_field": "solution",
            "answer_pattern": r"(?P<cot>.*)\nThe answer is \\boxed\{(?P<answer>.*)\}\.",
        },
        "dev_fraction": 0.1,
        "templates": {
            "kind": "chat",
            "system": "Reason step by step.",
            "answer_trigger": "\nThe answer is \\boxed{",
            "answer_suffix": "}.",
        },
    },
    "sft": {"schedule_epochs": 16, "warmup_epoch": 16, "stop_epoch": 16, "evaluate_every": 16, "save_every": 16}
    | {"batch_size": 32, "microbatch_size": 0, "prompt_buckets": 96, "response_buckets": 64}
    | {"optimizer": {"learning_rate": 3e-3}},
    "rl": {"algorithm": "grpo", "epochs": 1, "rollout_batch_size": 64, "samples_per_question": 4}
    | {"minibatch_size": 128, "microbatch_size": 0, "optimizer": {"learning_rate": 1e-4}},
    "generation": {"prompt_buckets": 96, "max_new_tokens": 48},
}


def rows(count: int) -> list[dict[str, str]]:
    """Different questions, with solutions that end in a box."""
    numbers = range(2, 10)
    cases = list(itertools.product(["Tom", "Ann", "Eva"], ["apples", "books", "pens"], numbers, numbers))
    made = []
    for name, thing, a, b in random.Random(0).sample(cases, count):
        question = f"{name} has {a} {thing} and gets {b} more. How many {thing} are there?"
        made.append(
            {"question": question, "solution": f"{a} + {b} = {a + b} {thing}.\nThe answer is \\boxed{{{a + b}}}."}
        )
    return made


def write_model(folder: Path, texts: list[str]) -> None:
    """A Hugging Face directory of a random Qwen2 with a byte-level tokenizer."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False),
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": VOCABULARY}
    config |= {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS}
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS // 2, "max_position_embeddings": 256}
    config |= {"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": True}
    config |= {"torch_dtype": "float32", "eos_token_id": SPECIAL.index("<|im_end|>")}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    draw, kv = np.random.default_rng(0), WIDTH // 2
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}."
        shapes |= {f"{block}{norm}.weight": (WIDTH,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for name, size in (("q", WIDTH), ("k", kv), ("v", kv)):
            shapes |= {
                f"{block}self_attn.{name}_proj.weight": (size, WIDTH),
                f"{block}self_attn.{name}_proj.bias": (size,),
            }
        shapes |= {f"{block}self_attn.o_proj.weight": (WIDTH, WIDTH), f"{block}mlp.down_proj.weight": (WIDTH, HIDDEN)}
        shapes |= {f"{block}mlp.{name}_proj.weight": (HIDDEN, WIDTH) for name in ("gate", "up")}
    make = lambda name, shape: np.ones(shape) if "norm" in name else draw.normal(0, 0.05, shape) * (len(shape) > 1)
    weights = {name: make(name, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main(arguments: list[str] | None = None) -> int:
    """Makes everything in a new folder, and runs every step; returns the first exit code that is not 0."""
    folder = Path((sys.argv[1:] if arguments is None else arguments)[0])
    made = rows(500)
    write_model(folder / "model", [row["question"] + row["solution"] for row in made])
    for name, part in (("train", made[:440]), ("test", made[440:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    config = json.loads(json.dumps(CONFIG).replace("MODEL", str(folder / "model")))
    for split in ("train", "test"):
        config["data"][split] = {**CONFIG["data"]["train"], "path": str(folder / f"{split}.jsonl")}  # type: ignore[index]
    (folder / "own.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    run, best = folder / "run", folder / "run/checkpoints/rl_best"
    steps = (
        (audit, ["--config", str(folder / "own.yaml")]),
        (train.main, ["--config", str(folder / "own.yaml"), "--run_dir", str(run)]),
        (evaluate.main, [str(best), "--split", "test", "--json", str(folder / "accuracy.json")]),
        (export.main, [str(best), str(folder / "exported")]),
    )
    return next((code for step, line in steps if (code := step(line))), 0)


if __name__ == "__main__":
    sys.exit(main())
