"""The parts of an algorithm: what `auto` stands for, and which are refused beside which, by name and all at once."""

import itertools

import pytest

from reft_jax.config import RlConfig, load_config

VALID = ["--run_dir=r", "--model.tokenizer=embedded", "--data.train.kind=generated", "--data.train.path=train"]
GROUPS = ["--rl.samples_per_question=4"]


def refused(capsys, *arguments: str) -> list[str]:
    with pytest.raises(SystemExit):
        load_config([*VALID, *arguments])
    return capsys.readouterr().err.split("error: ")[1].splitlines()


@pytest.mark.parametrize(
    ("settings", "baseline", "scale"),
    [
        ({}, "critic", "whiten"),
        ({"whiten_advantages": False}, "critic", "none"),
        ({"algorithm": "grpo"}, "group_mean", "group_deviation"),
        ({"algorithm": "grpo", "scale_by_group": False}, "group_mean", "none"),
        ({"algorithm": "grpo", "whiten_advantages": False}, "group_mean", "group_deviation"),
        ({"algorithm": "rloo"}, "leave_one_out", "none"),
        ({"algorithm": "reinforce"}, "none", "none"),
        ({"algorithm": "reinforce", "baseline": "critic"}, "critic", "none"),
        ({"algorithm": "ppo", "baseline": "group_mean"}, "group_mean", "whiten"),
        ({"algorithm": "grpo", "advantage_scale": "whiten"}, "group_mean", "whiten"),
        ({"algorithm": "self_training"}, "none", "none"),
    ],
)
def test_what_an_algorithm_means_by_itself(settings, baseline, scale):
    config = RlConfig(**settings)
    assert (config.chosen_baseline, config.chosen_scale) == (baseline, scale)
    assert config.has_critic == (baseline == "critic")


REFUSED = {
    "--rl.algorithm=grpo --rl.samples_per_question=4 --rl.critic=detached": [
        "rl.critic is `detached`: rl.algorithm `grpo` has no critic, leave it at `shared`"
    ],
    "--rl.baseline=none --rl.value_lambda=1 --rl.value_start=mean_reward": [
        "rl.value_lambda is 1.0: rl.baseline `none` has no critic, leave it at `auto`",
        "rl.value_start is `mean_reward`: rl.baseline `none` has no critic, leave it at `zero`",
    ],
    "--rl.algorithm=reinforce --rl.critic_warmup=3 --rl.critic_optimizer.learning_rate=0.1": [
        "rl.critic_warmup is 3: rl.algorithm `reinforce` has no critic, leave it at 0",
        "rl.critic_optimizer is set: rl.algorithm `reinforce` has no critic, leave it out",
    ],
    "--rl.algorithm=rloo": [
        "rl.samples_per_question is 1: rl.algorithm `rloo` compares the samples of a question, so it must be 2 or more"
    ],
    "--rl.algorithm=rloo --rl.baseline=group_mean --rl.advantage_scale=group_deviation --rl.only_mixed_groups=true": [
        f"rl.samples_per_question is 1: {name} compares the samples of a question, so it must be 2 or more"
        for name in ("rl.baseline `group_mean`", "rl.advantage_scale `group_deviation`", "rl.only_mixed_groups")
    ],
    "--rl.advantage_scale=group_deviation --rl.samples_per_question=4": [
        "rl.advantage_scale is `group_deviation` and the baseline is the critic: it divides the one advantage of a "
        "response, and a critic gives each token its own; take `whiten` or `none`"
    ],
    "--rl.baseline_shift=0.5": ["rl.baseline_shift is 0.5: a critic's values are learned, leave it at 0"],
    "--rl.whiten_advantages=false --rl.advantage_scale=whiten": [
        "rl.advantage_scale is `whiten` and rl.whiten_advantages is false: give one of them"
    ],
    "--rl.algorithm=grpo --rl.samples_per_question=4 --rl.scale_by_group=false --rl.advantage_scale=group_deviation": [
        "rl.advantage_scale is `group_deviation` and rl.scale_by_group is false: give one of them"
    ],
    "--rl.positive_weight=0 --rl.negative_weight=0": [
        "rl.positive_weight and rl.negative_weight are both 0: there is nothing to learn from"
    ],
    "--rl.surrogate=topr --rl.dual_clip=3 --rl.clip_range_high=0.3": [
        "rl.dual_clip is 3.0 and rl.surrogate is `topr`: it limits `clip`, leave it at 0",
        "rl.clip_range_high is 0.3: rl.surrogate `topr` clips nothing, leave it out",
    ],
    "--rl.surrogate=reinforce --rl.ratio=sequence_mean": [
        "rl.ratio is `sequence_mean`: rl.surrogate `reinforce` has no ratio, leave it at `token`"
    ],
    "--rl.overlong_buffer=401": [
        "rl.overlong_buffer (401) is more than generation.max_new_tokens (400): responses would be penalised from "
        "their first token on"
    ],
    "--rl.old_log_probs=sampler --rl.critic=detached --rl.sampler_ratio_cap=2": [
        "rl.old_log_probs is `sampler` and rl.critic is `detached`: its values need the pass over the completions that "
        "this would save; take `scored`, or rl.critic `separate`",
        "rl.sampler_ratio_cap is 2.0 and rl.old_log_probs is `sampler`: it needs `scored`",
    ],
    "--rl.critic_warmup=2": [
        "rl.critic_warmup is 2 and rl.critic_optimizer.learning_rate is 0: it needs an optimizer of its own, whose "
        "moments are not the policy's"
    ],
    "--rl.algorithm=self_training --rl.surrogate=cispo --rl.critic=separate --rl.overlong_filter=true": [
        f"rl.{name}: rl.algorithm `self_training` learns likelihoods, leave it at {default}"
        for name, default in (
            ("surrogate is `cispo`", "`clip`"),
            ("overlong_filter is true", "false"),
            ("critic is `separate`", "`shared`"),
        )
    ],
}


@pytest.mark.parametrize("line", REFUSED)
def test_parts_that_make_no_sense_together_are_refused_by_name(capsys, line):
    assert refused(capsys, *line.split()) == REFUSED[line]


@pytest.mark.parametrize(
    "cause", ["--rl.kl_coef=0.1", "--rl.kl_coef=0 --reward.no_answer=-1", "--rl.overlong_buffer=4"]
)
def test_what_is_divided_by_a_mean_of_rewards_is_never_negative(capsys, cause):
    maxrl = ["--rl.algorithm=grpo", *GROUPS, "--rl.advantage_scale=group_mean"]
    (said,) = refused(capsys, *maxrl, *([] if "kl" in cause else ["--rl.kl_coef=0"]), *cause.split())
    assert said.startswith(
        "rl.advantage_scale is `group_mean`: what is divided by a mean of rewards may not be below 0"
    )
    load_config([*VALID, *maxrl, "--rl.kl_coef=0"])
    load_config([*VALID, *maxrl, "--rl.kl_in=loss"])


def test_all_other_parts_go_together():
    """Every baseline without a critic beside every scale, surrogate, ratio and mean, as the mathematics lets them."""
    parts = itertools.product(
        ("none", "group_mean", "leave_one_out"),
        ("none", "group_deviation", "whiten"),
        ("clip", "cispo", "topr"),
        ("token", "sequence_mean", "sequence_product"),
        ("sequence_mean", "token_mean", "constant_length"),
    )
    names = ("baseline", "advantage_scale", "surrogate", "ratio", "loss_aggregation")
    for chosen in itertools.islice(parts, 0, None, 7):
        load_config([*VALID, *GROUPS, *(f"--rl.{name}={value}" for name, value in zip(names, chosen))])
