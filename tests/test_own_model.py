"""The walk of docs/own_model.py: a chat model, boxed solutions, and an export that transformers reads."""

import json
import subprocess
import sys

import pytest

from reft_jax.data.tokenizers import load_tokenizer

pytestmark = [pytest.mark.compiles, pytest.mark.long]


def test_a_chat_model_and_boxed_solutions_go_through_every_step(tmp_path):
    folder = tmp_path / "own"
    done = subprocess.run([sys.executable, "-m", "docs.own_model", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "<|im_start|>system\\nReason step by step.<|im_end|>" in said, "the first prompt is shown"

    summary = json.loads((folder / "run/summary.json").read_text())
    measured = json.loads((folder / "accuracy.json").read_text())["results"]["accuracy"]["value"]
    assert summary["rl_best"]["accuracy"] == measured
    assert summary["warmup"]["accuracy"] > 0.3, "it learned to answer in a box, which chance does in 1 of 15"

    rows = [json.loads(line) for line in (folder / "run/evaluations.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row.get("model") == "rl_best")
    exported = load_tokenizer(str(folder / "exported"), "main")
    turns = [{"role": "system", "content": "Reason step by step."}, {"role": "user", "content": first["question"]}]
    prompt = exported.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    own = load_tokenizer(str(folder / "model"), "main")
    assert prompt == own.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "exported")
    ids = torch.tensor([exported(prompt, add_special_tokens=False)["input_ids"]])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48)[0, ids.shape[1] :]
    assert exported.decode(made, skip_special_tokens=True) == first["completion"]
