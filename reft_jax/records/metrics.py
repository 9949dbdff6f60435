"""What each metric of a run is called, measured in, and means: the only place where names are defined."""

import re
from collections.abc import Mapping
from typing import NamedTuple


class Metric(NamedTuple):
    """What a metric is measured in, and what it says."""

    unit: str
    meaning: str


_OUTCOMES = {
    "correct": "whose answer is right",
    "wrong": "with an answer that is not right",
    "no_answer": "in which no answer can be read",
    "no_gold": "to questions without a gold answer",
    "error": "whose program does not parse or raises an exception",
    "timeout": "whose program ran out of time",
    "memory": "whose program ran out of memory",
    "forbidden": "whose program tried what the sandbox refuses",
    "deadline": "whose program had not run when the time of its batch was over",
}
_SUSPECT = "with a sign of reward hacking: right in spite of a wrong equation, or a letter that was not computed"


def _reading(split: str, name: str) -> dict[str, Metric]:
    """The metrics of one greedy evaluation; `split` prefixes their names."""
    return {
        f"{split}/accuracy": Metric(
            "share", f"{name} problems whose greedy answer is right, of those with a gold answer"
        ),
        f"{split}/interval_low": Metric("share", f"Low end of the 95 % Wilson interval of `{split}/accuracy`"),
        f"{split}/interval_high": Metric("share", f"High end of the 95 % Wilson interval of `{split}/accuracy`"),
        f"{split}/reward_mean": Metric("reward", f"Mean reward of {name.lower()} completions"),
        f"{split}/function/*": Metric("reward", f"Mean of a reward function of your own on {name.lower()} completions"),
        f"{split}/truncated": Metric("share", f"{name} completions cut at the longest response"),
        **{
            f"{split}/outcome_{outcome}": Metric("share", f"{name} completions {meaning}")
            for outcome, meaning in _OUTCOMES.items()
        },
        f"{split}/suspicious": Metric("share", f"{name} completions {_SUSPECT}"),
    }


METRICS: Mapping[str, Metric] = {
    "pretrain/loss": Metric("nats per token", "Cross-entropy of the targets of the step"),
    "pretrain/tokens": Metric("tokens", "Target tokens trained on in the step"),
    "sft/loss": Metric("nats per token", "Cross-entropy of the targets of the step"),
    "sft/tokens": Metric("tokens", "Target tokens trained on in the step"),
    "reward_model/loss": Metric("nats per completion", "Cross-entropy of the labels of the step, right or wrong"),
    "reward_model/accuracy": Metric("share", "Completions of the step that are told right from wrong"),
    "rerank/accuracy": Metric("share", "Dev questions whose likeliest completion is right, by the reward model"),
    "rerank/interval_low": Metric("share", "Low end of the 95 % Wilson interval of `rerank/accuracy`"),
    "rerank/interval_high": Metric("share", "High end of the 95 % Wilson interval of `rerank/accuracy`"),
    "rerank/vote": Metric("share", "Dev questions whose most frequent answer is right"),
    "rerank/upper_bound": Metric("share", "Dev questions with a right completion, which no choice can surpass"),
    "rerank/classification_accuracy": Metric(
        "share", "Unique completions of dev questions that are told right from wrong"
    ),
    "rl/policy_loss": Metric("1", "Clipped surrogate loss of the policy"),
    "rl/value_loss": Metric("reward squared", "Half the clipped squared error of the values, before `vf_coef`"),
    "rl/positive_nll": Metric("nats per token", "Cross-entropy of the right completions, before `positive_nll_coef`"),
    "rl/kl_loss": Metric("nats per token", "KL to the reference as a part of the loss, before `kl_coef`"),
    "rl/sampled_loss": Metric("nats per token", "Self-training: cross-entropy of the right completions"),
    "rl/gold_loss": Metric("nats per token", "Self-training: cross-entropy of the annotations of the same questions"),
    "rl/total_loss": Metric("1", "What is minimised: the losses above, weighted"),
    "rl/kl_k1": Metric(
        "nats per token",
        "KL of the sampling policy from the reference, where that is scored (`rl.kl_coef`); estimator k1, may be < 0",
    ),
    "rl/kl_k3": Metric("nats per token", "KL of the sampling policy from the reference; estimator k3, never below 0"),
    "rl/sequence_kl": Metric("nats per response", "k1 summed over each response, mean over responses"),
    "rl/kl_max": Metric("nats", "Largest absolute k1 of a token in the step"),
    "rl/log_ratio_max": Metric("nats", "Largest absolute log(new probability / old probability) of a token"),
    "rl/log_ratio_mean": Metric("nats per token", "Mean absolute log(new probability / old probability)"),
    "rl/ratio_mean": Metric("1", "Mean over tokens of new probability / old probability"),
    "rl/clip_fraction": Metric("share", "Tokens whose ratio, as `ratio` has it, lies beyond the clip range"),
    "rl/entropy": Metric("nats per token", "Entropy of the policy's next-token distribution"),
    "rl/explained_variance": Metric("1", "1 - Var(return - value) / Var(return) over tokens; 1 is a perfect critic"),
    "rl/explained_variance_first": Metric("1", "The same over the first third of each response"),
    "rl/explained_variance_middle": Metric("1", "The same over the second third"),
    "rl/explained_variance_last": Metric("1", "The same over the last third"),
    "rl/right_pushed_down": Metric(
        "share", "Tokens of right completions that the policy loss makes less likely: their advantage is below 0"
    ),
    "rl/kept": Metric("share", "Completions that are learned from, by `overlong_filter` and `only_mixed_groups`"),
    "rl/learned": Metric(
        "share",
        "Completions that a gradient comes from. Updates compute no others; ratios and clipping are told of these",
    ),
    "rl/draws": Metric("count", "Draws of questions for the iteration, up to `rl.max_draws`"),
    "rl/mixed": Metric("share", "Questions drawn whose completions earned different rewards"),
    "rl/questions_asked": Metric("share", "Questions that were ever drawn, where pass rates choose them"),
    "rl/questions_retired": Metric("share", "Questions with a pass rate of `rl.mastered_rate` or more"),
    "rl/sampler_sample_size": Metric(
        "share", "Tokens that the iteration's are worth with the weights of `sampler_ratio_cap`: effective sample size"
    ),
    "rl/advantage_mean": Metric("reward", "Mean advantage over tokens, before whitening and weights"),
    "rl/value_mean": Metric("reward", "Mean value over tokens"),
    "rl/return_mean": Metric("reward", "Mean return over tokens: advantage plus value, KL penalty included"),
    "rl/sampler_gap": Metric("nats per token", "Mean absolute difference of log-probs between sampler and trainer"),
    "rl/sampler_gap_max": Metric("nats", "Largest absolute difference of a token's log-prob between the two"),
    "optimizer/gradient_norm": Metric("1", "Global L2 norm of the gradient before clipping"),
    "optimizer/learning_rate": Metric("1", "Learning rate of the step"),
    "reward/mean": Metric("reward", "Mean reward of the sampled completions, without the KL penalty"),
    "reward/correct": Metric(
        "share", "Sampled completions whose answer is right, of those to questions with a gold answer"
    ),
    **{
        f"reward/outcome_{key}": Metric("share", f"Sampled completions {value}")
        for key, value in _OUTCOMES.items()
        if key != "correct"  # that is `reward/correct`
    },
    "reward/suspicious": Metric("share", f"Sampled completions {_SUSPECT}"),
    "reward/function/*": Metric(
        "reward", "Mean of a reward function of your own, named as its import path ends (all of it where two end alike)"
    ),
    "response/length_mean": Metric("tokens", "Mean length of the sampled completions, end token included"),
    "response/truncated": Metric("share", "Sampled completions cut at the longest response"),
    **_reading("eval", "Dev"),
    **_reading("test/*", "Test"),
    "throughput/rollout_tokens_per_s": Metric("tokens/s", "Response tokens sampled, padding not counted"),
    "throughput/update_tokens_per_s": Metric(
        "tokens/s", "Response tokens of updates, padding not counted, every pass counted"
    ),
    "throughput/padding_share": Metric(
        "share", "Places for tokens in the rows of a step's forward and backward pass that hold padding"
    ),
    "throughput/train_tokens_per_s": Metric(
        "tokens/s", "Prompt and target tokens of supervised steps, and of the reward model's"
    ),
    "time/rollout_s": Metric("s", "Sampling of the step's completions"),
    "time/reward_s": Metric("s", "Decoding and judging of the completions"),
    "time/experience_s": Metric("s", "Scoring by old policy and reference, advantages and returns"),
    "time/update_s": Metric("s", "Optimizer steps"),
    "time/evaluation_s": Metric("s", "One evaluation, programs included"),
    "time/step_s": Metric("s", "The whole step"),
    "run/compilations": Metric("count", "Steps compiled by this process since it started, one for each bucket"),
    "run/workers_replaced": Metric("count", "Program workers of process 0 that died at work since it started"),
    "run/epoch": Metric("epochs", "Passes over the stage's data so far"),
    "run/examples": Metric("sequences", "Sequences trained on in the stage so far, every pass counted"),
}
"""Every metric that may be written: the only place where names are defined.

`python -m docs.generate` makes the table of `docs/metrics.md` from it.
"""


def documented(name: str) -> str:
    """The name under which `METRICS` has a metric: `*` stands for a model that is tested, and for a reward function."""
    return re.sub(r"(?<=/function/).*", "*", re.sub(r"^test/[^/]+/", "test/*/", name))
