"""Every number of the settings has a range at its field, that holds however the config was made."""

import dataclasses
import math
import os
import pickle
import typing
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import yaml

from reft_jax.config import Config, load_config, to_dict
from reft_jax.config.ranges import AUTO
from reft_jax.config.validation import require_files, validate

VALID = ["--run_dir=r", "--model.tokenizer=embedded", "--data.train.kind=generated", "--data.train.path=train"]
NUMBERS = (
    *(int, float, float | Literal["auto"], tuple[int, ...], dict[str, float | dict[str, bool | float]]),
    *(tuple[tuple[int, int], ...], dict[str, bool | int | float | str]),
)


def fields(config_type: Any, prefix: str = "") -> Iterator[tuple[str, "dataclasses.Field[Any]"]]:
    """(dotted key, field) of every setting."""
    for field in dataclasses.fields(config_type):
        if dataclasses.is_dataclass(field.type):
            yield from fields(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


def plain_type(field: "dataclasses.Field[Any]") -> Any:
    """The type without what stands beside it."""
    return typing.get_args(field.type)[0] if typing.get_origin(field.type) is typing.Annotated else field.type


def mentions_numbers(kind: Any) -> bool:
    return kind in (int, float) or any(mentions_numbers(part) for part in typing.get_args(kind))


NUMERIC = {key: plain_type(field) for key, field in fields(Config) if mentions_numbers(plain_type(field))}


def changed(config: Any, key: str, value: Any) -> Any:
    """The config with the value at a dotted key, made without any parser."""
    name, _, rest = key.partition(".")
    return dataclasses.replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})


def at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def faults(config: Config) -> list[str]:
    with pytest.raises(ValueError) as refused:
        validate(config)
    return str(refused.value).splitlines()


@pytest.fixture(scope="module")
def valid() -> Config:
    return load_config(VALID)


def test_every_number_has_a_range():
    assert len(NUMERIC) > 110
    assert set(NUMERIC.values()) == set(NUMBERS), "a type that the tests here know"
    bare = [key for key, field in fields(Config) if key in NUMERIC and typing.get_origin(field.type) is None]
    assert not bare, "give it a type of reft_jax.config.ranges"


@pytest.mark.parametrize("key", NUMERIC)
def test_a_number_out_of_its_range_is_refused_in_a_config_made_in_python(valid, key):
    """No integer may be -2, no float nan or infinite, no list of lengths empty or with a 0."""
    out = {
        int: [-2],
        float: [math.nan, math.inf, -math.inf],
        float | Literal["auto"]: [math.nan, math.inf, -0.1],
        tuple[int, ...]: [(), (8, 0)],
        dict[str, float | dict[str, bool | float]]: [
            *({"a.b": math.nan}, {"a.b": 1.0, "a.c": math.inf}, {"a.b": {"weight": math.nan}}, {"a.b": {}}),
            *({"a.b": {"weight": True}}, {"a.b": {"weight": 1, "contained": 1}}, {"a.b": {"weight": 1, "other": 1}}),
        ],
        tuple[tuple[int, int], ...]: [((2, 2),), ((0, 1), (-2, 3))],
        dict[str, bool | int | float | str]: [{"a": math.nan}, {"a": True, "b": math.inf}],
    }
    for value in out[NUMERIC[key]]:
        assert f"{key} is {value}: it must be " in "\n".join(faults(changed(valid, key, value)))


SIGNED = {"reward.correct", "reward.wrong", "reward.no_answer", "mesh.data", "mesh.fsdp", "mesh.tensor"} | {
    "rl.baseline_shift"
}


@pytest.mark.parametrize("key", [key for key, kind in NUMERIC.items() if kind in (int, float) and key not in SIGNED])
def test_numbers_but_for_rewards_and_meshes_are_not_negative(valid, key):
    value = -1 if NUMERIC[key] is int else -1e-9
    assert f"{key} is {value}: it must be " in "\n".join(faults(changed(valid, key, value)))


@pytest.mark.parametrize(
    ("key", "allowed", "refused"),
    [
        ("sft.batch_size", [48, 96], [0]),
        ("rl.epochs", [0, 1], [-1]),
        ("seed", [0, 2**31 - 1], [-1, 2**31]),
        ("mesh.fsdp", [-1, 1, 8], [0, -2]),
        ("reward.wrong", [-1.0, 0.0, 1], [math.nan]),
        ("model.decoder.rope_theta", [1e-3, 1e9], [0.0, -1.0]),
        ("rl.kl_coef", [0.0, 7.0], [-0.1]),
        ("rl.gae_lambda", [0, 1], [1.1, -0.1]),
        ("rl.value_lambda", ["auto", 0, 1], [1.1, -0.1]),
        ("rl.clip_range_high", ["auto", 0.1], [0.0, -0.1]),
        ("rl.dual_clip", [0, 1.01], [1.0, 0.5, -3.0]),
        ("rl.baseline_shift", [0.0], [math.inf]),
        ("data.dev_fraction", [0.01, 0.99], [0.0, 1.0]),
        ("generation.prompt_buckets", [(1,), (8, 4), AUTO], [(), (0,), (0, 8), (4, -1)]),
        ("reward.functions", [{}, {"a.b": -2.0}], [{"a.b": -math.inf}]),
    ],
)
def test_a_range_has_its_ends(valid, key, allowed, refused):
    for value in allowed:
        validate(changed(valid, key, value))
    for value in refused:
        assert f"{key} is {value}: it must be " in "\n".join(faults(changed(valid, key, value)))


def test_numbers_are_plain_ones_whether_set_or_not(valid):
    line = ["--seed=3", "--rl.kl_coef=0.5", "--sft.prompt_buckets=[8, 9]", "--reward.functions={a.b: 2}"]
    for config in (Config(), valid, load_config([*VALID, *line])):
        for key, kind in NUMERIC.items():
            value = at(config, key)
            parts = value if isinstance(value, tuple) else value.values() if isinstance(value, dict) else [value]
            parts = [part for part in parts if part != "auto"]
            assert {type(part) for part in parts} <= {int if kind in (int, tuple[int, ...]) else float}, key
        assert pickle.loads(pickle.dumps(config)) == config
        assert yaml.safe_load(yaml.safe_dump(to_dict(config))) == to_dict(config)


def test_all_faults_of_a_config_are_told_at_once(valid, capsys):
    wrong = {"rl.kl_coef": -0.1, "sft.batch_size": 7, "model.decoder.num_kv_heads": 0, "rl.microbatch_size": -1}
    config = valid
    for key, value in wrong.items():
        config = changed(config, key, value)
    expected = [
        "model.decoder.num_kv_heads is 0: it must be more than 0",
        "sft.batch_size (7) must be a multiple of sft.microbatch_size (48)",
        "rl.microbatch_size is -1: it must be 0 or more",
        "rl.kl_coef is -0.1: it must be 0 or more",
        "run_dir is empty: name the folder that the run is written to",
    ]
    assert faults(dataclasses.replace(config, run_dir="")) == expected
    with pytest.raises(SystemExit):
        load_config([*VALID, *(f"--{key}={value}" for key, value in wrong.items()), "--run_dir="])
    assert capsys.readouterr().err.split("error: ")[1].splitlines() == expected


def test_a_microbatch_of_0_is_the_whole_batch(valid):
    """Wherever the config is made; and it is written as what it is."""
    line = ["--sft.microbatch_size=0", "--sft.batch_size=96", "--rl.microbatch_size=0", "--rl.minibatch_size=16"]
    line += ["--pretrain.microbatch_size=0", "--reward_model.microbatch_size=0", "--reward_model.batch_size=7"]
    config = load_config([*VALID, *line])
    sizes = {"sft": 96, "rl": 16, "pretrain": 48, "reward_model": 7}
    assert {stage: at(config, f"{stage}.microbatch_size") for stage in sizes} == sizes
    assert to_dict(config)["sft"]["microbatch_size"] == 96
    assert changed(valid, "sft.microbatch_size", 0).sft.microbatch_size == valid.sft.batch_size


def test_all_missing_files_are_told_at_once():
    kinds = ["--data.train.kind=gsm8k", "--data.test.kind=gsm8k", "--data.train.path=no/a", "--data.test.path=no/b"]
    with pytest.raises(FileNotFoundError) as refused:
        require_files(load_config([*VALID, *kinds]))
    assert str(refused.value).splitlines() == [
        f"data.train.path: there is no file {os.path.abspath('no/a')!r}",
        f"data.test.path: there is no file {os.path.abspath('no/b')!r}",
    ]
