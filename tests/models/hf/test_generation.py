"""Exports generate in transformers and peft as the run's own sampler does, with nothing said but the question.

The bases are hostile: their end tokens are not the tokenizer's, their generation config penalises, samples and stops
elsewhere, and their tokenizer puts a token before every text.
"""

import copy
import itertools
import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from reft_jax.algorithms.rollout import SamplingParams
from reft_jax.config import LoraConfig, MeshConfig, ModelConfig, load_config
from reft_jax.data.batches import PromptBatch
from reft_jax.data.encoding import encode_prompts
from reft_jax.data.tokenizers import load_tokenizer, special_ids
from reft_jax.export import export, export_adapter
from reft_jax.models.hf.load import decoder_config, end_tokens, load_decoder_params
from reft_jax.models.lora import merge
from reft_jax.parallel.sharding import batch_shardings, make_mesh, to_global, to_host
from reft_jax.problem import Problem
from reft_jax.records.checkpoint import Checkpoints, part_name
from reft_jax.training.startup import prepare
from tests.generation import build_generate
from tests.models.hf.test_export_adapters import random_adapters
from tests.models.test_parity import CASES, forward
from tests.tiers import few

pytestmark = pytest.mark.compiles

CHARACTERS = "0123456789+=Q:#?\n"
VOCABULARY, TOKENS, LONGEST = 61, 64, 17  # of the bases; of a response; of a prompt
BOS = 17
GAP = 1e-3
"""Smallest difference between the two highest logits, which are of size 1 to 10, along the prompts that are compared:
float32 differs by 1e-5 between two programs, so that none can choose otherwise."""


def build_tokenizer(eos: int) -> PreTrainedTokenizerFast:
    """A token a character; the others are `<x17>` and so on, of which one ends and one is put before texts."""
    vocabulary = {character: i for i, character in enumerate(CHARACTERS)}
    vocabulary |= {f"<x{i}>": i for i in range(len(CHARACTERS), VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<x18>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single=f"<x{BOS}> $A", special_tokens=[(f"<x{BOS}>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"<x{eos}>", bos_token=f"<x{BOS}>")


def make_base(torch, case: str, folder: Path, *, flip: bool = False) -> None:
    """A random model of the shape of a golden one, with room for the rows; `flip` ties what is not tied, or unties."""
    from transformers import AutoModelForCausalLM

    from tests.models.make_golden import CASES as SHAPES
    from tests.models.make_golden import randomise

    config = copy.deepcopy(SHAPES[case][0])
    config.max_position_embeddings = 96
    config.tie_word_embeddings ^= flip
    if case == "mistral":
        config.sliding_window = None
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(config).eval()
    randomise(model)
    model.save_pretrained(folder)


def sample(config: ModelConfig, decoder: dict, prompts: list[np.ndarray], ends: tuple[int, ...]):
    """Greedy rows of the run's own sampler: (sequences, on the host)."""
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    count = len(prompts)
    tokens = np.zeros((count, LONGEST), np.int32)
    for row, prompt in zip(tokens, prompts):
        row[: len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    batch = PromptBatch(
        tokens=tokens, lengths=lengths, problem=np.arange(count, dtype="i4"), sample=np.zeros(count, "i4")
    )
    step, _ = build_generate(
        config,
        mesh,
        batch=count,
        prompt=LONGEST,
        max_new_tokens=TOKENS,
        sampling=SamplingParams(temperature=0),
        eos=ends,
        pad=0,
        scan_layers=True,
    )
    on_device = to_global(batch, batch_shardings(batch, mesh))
    return to_host(step({"decoder": decoder}, on_device, np.int32(0), np.int32(0))).sequences


def choose(config: ModelConfig, decoder: dict, problems: list[Problem], prompts: list[np.ndarray]):
    """Ten problems along whose responses `GAP` holds, and two tokens each of which ends some, one being left whole."""
    free = sample(config, decoder, prompts, (VOCABULARY,))  # which is never sampled
    logits = np.sort(np.asarray(forward(config, decoder, free.tokens)), axis=-1)
    gaps = logits[..., -1] - logits[..., -2]
    firm = [i for i, prompt in enumerate(prompts) if gaps[i, len(prompt) - 1 :][:TOKENS].min() > GAP][:10]
    assert len(firm) == 10, "take more problems, or another seed"
    found = free.responses[firm][:, : TOKENS - 1]  # the last token is not the end's doing
    first = lambda token: np.where((found == token).any(1), (found == token).argmax(1), TOKENS)
    for one, other in itertools.permutations(range(19, VOCABULARY), 2):
        a, b = first(one), first(other)
        if (a < b).any() and (b < a).any() and (a == b).any():
            return [problems[i] for i in firm], one, other
    raise AssertionError("no two tokens would end some of these rows and not all: take another seed")


def trained(params: dict) -> dict:
    """The base's weights moved by a tenth, as by training."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(x * (1 + 0.1 * rng.standard_normal(x.shape)), x.dtype), params)


def make_problems(base: Path, eos: int) -> tuple[list[Problem], list[np.ndarray]]:
    rng = np.random.default_rng(3)
    problems = [Problem(f"p{i}", f"{rng.integers(100)}+{rng.integers(100)}=", "1") for i in range(32)]
    templates = load_config(line(base, base, base)).data.templates
    rows, _ = encode_prompts(problems, build_tokenizer(eos), templates, "program", max_prompt=LONGEST, overlong="error")
    return problems, [row.tokens for row in rows]


def line(run: Path, base: Path, tokenizer: Path) -> list[str]:
    found = ["--run_dir", str(run), "--model.path", str(base), "--model.tokenizer", str(tokenizer)]
    found += ["--data.train.kind", "generated", "--data.train.path", "train", "--sft.prompt_buckets", "[17]"]
    found += ["--sft.response_buckets", "[17]", "--generation.prompt_buckets", f"[{LONGEST}]"]
    found += ["--generation.max_new_tokens", str(TOKENS), "--data.templates.instruction", "Q"]
    return [*found, "--data.templates.cot_trigger", ":\n", "--data.templates.program_header", "#{question}\n"]


def make_run(base: Path, folder: Path, eos: int, other: int, *settings: str) -> Path:
    """The folder of a run of the base, whose generation config has `other` for an end token; without checkpoints.

    The base's config has the tokenizer's, and no more: what it says of old counts as well.
    """
    fields = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(fields | {"eos_token_id": eos}))
    hostile = {"eos_token_id": [other], "repetition_penalty": 1.1, "do_sample": True, "top_k": 20, "temperature": 0.6}
    (base / "generation_config.json").write_text(json.dumps(hostile))
    build_tokenizer(eos).save_pretrained(folder / "tokenizer")
    prepare(load_config([*line(folder / "run", base, folder / "tokenizer"), *settings]))
    return folder / "run"


def compare(torch, model, tokenizer, config: ModelConfig, decoder: dict, problems: list[Problem], run: Path) -> None:
    """The tokens that `model` generates by its own files, and those of our sampler with the run's end tokens."""
    templates = load_config(["--config", str(run / "config.yaml")]).data.templates
    own = load_tokenizer(str(run / "tokenizer"), "main")
    ends = special_ids(own, end_tokens(run / "model")).ends
    rows, _ = encode_prompts(problems, own, templates, "program", max_prompt=LONGEST, overlong="error")
    ours = sample(config, decoder, [row.tokens for row in rows], ends)
    reasons = set()
    for problem, row, response, length in zip(problems, rows, ours.responses, ours.response_lengths):
        chat = [{"role": "user", "content": problem.question}]
        inputs = tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")
        tokens, mask = inputs["input_ids"], inputs["attention_mask"]
        np.testing.assert_array_equal(tokens[0], row.tokens)
        with torch.no_grad():
            found = model.generate(tokens, attention_mask=mask, max_new_tokens=TOKENS)[0, tokens.shape[1] :].numpy()
        np.testing.assert_array_equal(found, response[:length])
        reasons.add(int(found[-1]) if len(found) < TOKENS else "whole")
    assert reasons == {*ends, "whole"}


FLIPPED = ("codegen flipped", "gpt2 flipped", "llama flipped", "opt flipped")


@pytest.mark.parametrize("case", few([*CASES, *FLIPPED], [], ci=["llama"]))
def test_transformers_generates_what_our_sampler_does(case, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tmp_path / "base"
    make_base(torch, case.removesuffix(" flipped"), base, flip=case in FLIPPED)
    config = ModelConfig(decoder=decoder_config(base))
    decoder = trained(load_decoder_params(base, config))
    problems, eos, other = choose(config, decoder, *make_problems(base, 20))
    run = make_run(base, tmp_path, eos, other)
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save_params("rl_best", {"decoder": decoder})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default", UserWarning)
        export(run / "checkpoints/rl_best", tmp_path / "out", dtype="float32")
    name, loader = ("PreTrainedTokenizerFast", PreTrainedTokenizerFast) if told else ("AutoTokenizer", AutoTokenizer)
    if told:  # newer versions of transformers know one tokenizer of this family, and rebuild any other as that
        assert case == "qwen2"
        assert "otherwise than the run did" in str(told[0].message)
    assert f"{name}.from_pretrained" in (tmp_path / "out" / "README.md").read_text()
    tokenizer = loader.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    compare(torch, model, tokenizer, config, decoder, problems, run)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # what peft asks transformers
def test_peft_generates_what_our_sampler_does(tmp_path):
    """Adapters of two stages on the base, with the generation config that stands beside them."""
    torch = pytest.importorskip("torch", reason="needs torch")
    peft = pytest.importorskip("peft", reason="needs peft")
    from transformers import AutoTokenizer, GenerationConfig

    base, out = tmp_path / "base", tmp_path / "out"
    make_base(torch, "llama", base)
    config = ModelConfig(decoder=decoder_config(base))
    lora = LoraConfig(rank=3, alpha=1.5)
    params = {"decoder": load_decoder_params(base, config)}
    stages = []
    for seed, name in enumerate(("warmup", "rl_best")):
        adapters = random_adapters(config.decoder, lora, seed)
        params = merge({**params, "lora": adapters}, lora)
        stages += [(name, params), (part_name(name, "lora"), {"lora": adapters})]
    problems, eos, other = choose(config, params["decoder"], *make_problems(base, 20))
    run = make_run(base, tmp_path, eos, other, "--model.lora.rank", "3", "--model.lora.alpha", "1.5")
    with Checkpoints(run / "checkpoints") as checkpoints:
        for name, saved in stages:
            checkpoints.save_params(name, saved)
    export_adapter(run / "checkpoints/rl_best", out)
    model = peft.AutoPeftModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig.from_pretrained(out)
    compare(torch, model, AutoTokenizer.from_pretrained(out), config, params["decoder"], problems, run)
