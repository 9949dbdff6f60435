"""Which settings may change in a run that has begun: the tables name settings, and the reasons name the stage."""

import pytest

from reft_jax.config import Config, differences
from reft_jax.config.changes import ANY_TIME, FROM_HERE_ON, REASONS, STAGE_FROM_HERE_ON, STAGES, among, refusals
from reft_jax.config.faults import fields_of, sections_of

FIELDS = fields_of(Config)
RUN = {"pretrain": "done", "sft": "begun", "rl": "ahead", "reward_model": "absent"}


def refused(key: str, *allowed: str) -> list[str]:
    return list(refusals({key: (1, 2)}, allowed, RUN))  # type: ignore[arg-type]


def test_the_tables_name_settings():
    assert {*ANY_TIME, *FROM_HERE_ON} <= set(FIELDS) | sections_of(Config)
    own = {key.partition(".")[2] for key in FIELDS if key.partition(".")[0] in STAGES}
    assert all(any(among(name, (listed,)) for name in own) for listed in STAGE_FROM_HERE_ON)
    others = {key.partition(".")[0] for key in FIELDS if not among(key, (*ANY_TIME, *FROM_HERE_ON))} - set(STAGES)
    assert others == set(REASONS), "each section that stays has its reason"


@pytest.mark.parametrize("key", FIELDS)
def test_every_setting_is_of_one_kind(key):
    """What `allow_changed` names is accepted or refused with a reason; what it does not name is accepted or told."""
    unnamed, named = refused(key), refused(key, key)
    assert len(unnamed) <= 1
    if not unnamed:
        assert among(key, ANY_TIME) or key.startswith("reward_model.")
    elif named:
        assert unnamed == named
        assert named[0].startswith(f"{key} is 2 and was 1: it cannot change, for ")
    else:
        assert unnamed[0].endswith("name it in allow_changed to go on with the new value from here on")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("pretrain.optimizer.learning_rate", "the run is past pretrain"),
        ("sft.batch_size", "sft has begun with the old value"),
        ("sft.optimizer.learning_rate", ""),
        ("sft.stop_epoch", ""),
        ("rl.minibatch_size", ""),
        ("rl.critic", ""),
        ("reward.wrong", ""),
        ("reward.tolerance", "accuracies before and after could not be compared"),
        ("generation.max_new_tokens", "accuracies before and after could not be compared"),
        ("data.templates.instruction", "the problems, prompts and targets of a run stay the same"),
        ("seed", "it draws the data's order and the samples of the whole run"),
    ],
)
def test_what_may_change_depends_on_where_the_run_is(key, reason):
    told = refused(key, key)
    assert (told == []) if not reason else told[0].endswith(f"it cannot change, for {reason}")


def test_differences_are_those_of_the_leaves():
    old, new = {"a": {"b": 1, "c": [1]}, "d": {}}, {"a": {"b": 2, "c": [1]}, "d": {"e": 3}}
    assert differences(old, new) == {"a.b": (1, 2), "d.e": (None, 3)}
