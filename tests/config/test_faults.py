"""A refusal of the command line: a line of usage, and all that is wrong at once, with its file and what would do."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from reft_jax.config import Config, config_parser, load_config
from reft_jax.config.faults import faults, fields_of, words_of

VALID = ["--run_dir=r", "--model.tokenizer=embedded", "--data.train.kind=generated", "--data.train.path=train"]
FIELDS = fields_of(Config)


def refusal(capsys, *arguments: str) -> list[str]:
    """The lines behind `error: `, of a refusal that is short."""
    with pytest.raises(SystemExit) as stop:
        load_config([*VALID, *arguments])
    assert stop.value.code == 2
    usage, tip, *told = capsys.readouterr().err.splitlines()
    assert usage == "usage: python -m reft_jax.train [--config CONFIG] [--KEY VALUE ...]"
    assert tip.startswith("tip: ")
    return "\n".join(told).removeprefix("error: ").splitlines()


def test_all_faults_are_told_at_once_with_their_files(tmp_path, capsys):
    base, over = tmp_path / "base.yaml", tmp_path / "over.yaml"
    base.write_text(yaml.safe_dump({"rl": {"kl_coeff": 1, "critic": "x", "epochs": 2.5, "vf_coef": -1}, "foo": 1}))
    over.write_text(yaml.safe_dump({"config": ["base.yaml"], "sft": {"prompt_buckets": "long"}}))
    told = refusal(capsys, "--config", str(over), "--rl.epochs=many", "--model.scan_layers", "maybe", "--sed", "3")
    lengths = "a list of whole numbers, one or more lengths, each more than 0, or auto"
    assert sorted(told) == sorted(
        [
            f"rl.kl_coeff is no setting: did you mean rl.kl_coef? ({base})",
            f"foo is no setting ({base})",
            "sed is no setting: did you mean seed?",
            f"rl.critic is 'x': it must be one of shared, detached, separate ({base})",
            f"sft.prompt_buckets is 'long': it must be {lengths} ({over})",
            "model.scan_layers is 'maybe': it must be true or false",
            "rl.epochs is 'many': it must be a whole number, 0 or more",
            f"rl.vf_coef is -1.0: it must be 0 or more ({base})",
        ]
    )


@given(st.sampled_from([key for key in FIELDS if len(key) > 8]), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_no_key_passes_as_an_abbreviation_and_its_name_is_suggested(key, cut):
    short = key[:-cut]
    told = list(faults([f"--{short}", "1"], {"config"}))
    sections = {".".join(k.split(".")[:n]) for k in FIELDS for n in range(1, 4)}
    assert (
        short in FIELDS or short in sections or (told and told[0].startswith(f"{short} is no setting: did you mean "))
    )


def test_every_type_of_setting_has_words():
    assert {words_of(field).split(",")[0] for field in FIELDS.values()} >= {"a number", "a whole number", "text"}
    assert [key for key, field in FIELDS.items() if "names with numbers" in words_of(field)] == ["reward.functions"]


def test_a_commands_own_arguments_are_known(capsys):
    parser = config_parser("one", "")
    parser.add_argument("--own", type=int, required=True)
    with pytest.raises(SystemExit):
        parser.parse_args(["--own", "x", "--rl.epoch", "3"])
    assert capsys.readouterr().err.splitlines()[-1] == "error: rl.epoch is no setting: did you mean rl.epochs?"
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "required: --own" in capsys.readouterr().err
