"""The reinforcement loop: draw questions, sample, judge, learn, record (ReFT, section 3.2)."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from reft_jax.algorithms.rollout import Rollout
from reft_jax.algorithms.train_state import TrainState
from reft_jax.config import CollapseConfig, LoggingConfig, RlConfig
from reft_jax.data.encoding import Example
from reft_jax.models.params import Params
from reft_jax.parallel.processes import Interrupted
from reft_jax.training import collapse
from reft_jax.training.completion import Completion, function_means, per_token, share_correct, summarise
from reft_jax.training.drawing import Drawn, draw_iteration
from reft_jax.training.learners import Iteration, Learner, make_learner
from reft_jax.training.sampler import Sampler
from reft_jax.training.state import PhaseClock, Records, RunProgress, Stage
from reft_jax.training.supervised import evaluate_dev

FAR = 0.25
"""Distance of the first values from the first rewards, as a share of these, beyond which a warning says so."""

UNREAD_SHARE = 0.95
"""Share of completions without an answer, in the first iteration, at which that is said."""

BEST = "rl_best"
"""The model of reinforcement that was best on dev."""


def reinforce(
    records: Records,
    sampler: Sampler,
    stage: Stage,
    examples: Sequence[Example],
    start: Callable[[], Params],
) -> None:
    """Samples, judges and learns until the stage's end, or until `rl.collapse` ends it; the progress then says why.

    Args:
        records: of the run.
        sampler: the model, with the problems.
        stage: `rl`.
        examples: annotations of the training problems, of which self-training learns too.
        start: makes the parameters {"decoder"} to begin with.

    Raises:
        Interrupted: the run was asked to stop, and has saved where it was.
    """
    progress, stop = records.progress, sampler.model.stop
    state, learner = make_learner(records, sampler.model, stage, examples, start)
    records.display.stage(stage.name, stage.stop, progress.stage_step)
    try:
        if progress.evaluation_pending:
            end_iteration(records, sampler, stage, state)
        for number in range(progress.stage_step, stage.stop):
            stop.check()
            with records.profile.step(stage.name, number + 1, len(sampler.model.compiled)):
                state = iterate(records, sampler, stage, learner, state, number)
            if progress.collapse:
                records.display.message(f"reinforcement ends after iteration {number + 1}: {progress.collapse}")
                return
            end_iteration(records, sampler, stage, state)
    except Interrupted:
        records.save(stage.offset + progress.stage_step, state)
        raise


def iterate(
    records: Records, sampler: Sampler, stage: Stage, learner: Learner, state: TrainState, number: int
) -> TrainState:
    """Draws, samples, judges, learns from and records an iteration, its `number` from 0; returns the new state.

    The progress says why reinforcement should end now, if it should.
    """
    config, progress, clock = sampler.config, records.progress, PhaseClock()
    drawn = draw_iteration(sampler, state.params, stage, number, progress, clock)
    rollout = sampler.on_devices(drawn.rollout, drawn.completions)
    clock.lap("reward")
    if number == 0 and (warning := unread(drawn.all_completions)):
        records.display.message(warning)
    state, metrics, tokens = learner.learn(state, Iteration(number, drawn.prompts, rollout, drawn.completions), clock)
    if number == 0 and (warning := biased_critic(config.rl, drawn.completions, metrics)):
        records.display.message(warning)
    progress.asked, progress.draws, progress.pass_rates = drawn.asked, drawn.draws, drawn.pass_rates
    progress.collapse = detect_collapse(config.rl.collapse, progress, drawn.all_completions, metrics)
    record_iteration(records, sampler, stage, number + 1, drawn, metrics, clock)
    if recorded(config.logging, stage, progress):
        record_rollout(records, sampler, stage, drawn.rollout, drawn.completions, tokens)
    return state


def unread(completions: Sequence[Completion]) -> str:
    """A warning where hardly any completion has an answer, right or wrong, with an example; else nothing."""
    without = [c for c in completions if c.verdict.outcome not in ("correct", "wrong", "no_gold")]
    if len(without) < UNREAD_SHARE * len(completions):
        return ""
    outcomes = collections.Counter(completion.verdict.outcome for completion in without)
    counts = ", ".join(f"{name} {count}" for name, count in outcomes.items())
    cut = sum(not completion.ended for completion in without)
    limit = (
        f"{cut} of them were cut at generation.max_new_tokens: is it long enough, and "
        if 2 * cut > len(without)
        else ""
    )
    return (
        f"warning: {len(without)} of the {len(completions)} completions of the first iteration have no answer that can "
        f"be read ({counts}), such as {without[0].text[-500:]!r}; "
        f"{limit}does the model know the format (data.templates, data.cot)?"
    )


def biased_critic(config: RlConfig, completions: Sequence[Completion], metrics: Mapping[str, Any]) -> str:
    """A warning where the first advantages push right completions down, for values are far from rewards; else nothing.

    With values below the rewards, a decay below 1 keeps a reward from the start of its response, and whitening then
    makes advantages there negative.
    """
    if not config.has_critic or config.chosen_scale != "whiten" or config.gae_lambda == 1 or config.critic_warmup:
        return ""
    reward, value = float(np.mean([each.reward for each in completions])), float(metrics["rl/value_mean"])
    if abs(value - reward) <= FAR * abs(reward):
        return ""
    return (
        f"warning: values are {value:.2f} on average and rewards {reward:.2f}: with whitening and rl.gae_lambda "
        f"{config.gae_lambda:g}, {100 * metrics['rl/right_pushed_down']:.0f} % of the tokens of right completions are "
        "made less likely, and the reward may fall at first (rl.value_start, rl.critic_warmup, rl.gae_lambda: 1)"
    )


def detect_collapse(
    config: CollapseConfig, progress: RunProgress, completions: Sequence[Completion], metrics: dict[str, Any]
) -> str:
    """Why the run should end now, or nothing; the progress remembers the rewards that it takes to know.

    Args:
        config: the bounds.
        progress: of the run; its `rewards` are brought up to date.
        completions: of the iteration.
        metrics: of the iteration; self-training has no KL.
    """
    progress.rewards = collapse.with_iteration(progress.rewards, completions, config.window)
    if reason := collapse.fall(progress.rewards, config):
        return reason
    kl = float(metrics.get("rl/sequence_kl", 0.0))
    if config.max_kl and not kl <= config.max_kl:
        return f"the KL to the reference is {kl:.3g} nats a response, more than {config.max_kl:g} (rl.collapse.max_kl)"
    return ""


def reward_metrics(completions: Sequence[Completion]) -> dict[str, float]:
    """Mean reward, shares of outcomes, and lengths of the responses."""
    shares, correct = summarise(completions), share_correct(completions)
    shares.pop("outcome_correct", None)
    return {
        **{f"reward/{name}": share for name, share in shares.items() if name.startswith(("outcome_", "suspicious"))},
        **function_means(completions),
        "reward/mean": float(np.mean([completion.reward for completion in completions])),
        **({} if correct is None else {"reward/correct": correct}),
        "response/length_mean": shares["length_mean"],
        "response/truncated": shares["truncated"],
    }


def record_iteration(
    records: Records,
    sampler: Sampler,
    stage: Stage,
    done: int,
    drawn: Drawn,
    learned: dict[str, Any],
    clock: PhaseClock,
) -> None:
    """Records an iteration, the `done`th, and advances the progress to it; `learned` are the learner's metrics."""
    config, progress = sampler.config.rl, records.progress
    seconds, completions = sum(clock.seconds.values()), drawn.all_completions
    sampled, updated = (sum(each.tokens for each in part) for part in (completions, drawn.completions))
    progress.spend(stage.name, len(drawn.completions) * config.update_epochs, seconds)
    progress.stage_step = done
    metrics = {
        **{name: float(value) for name, value in learned.items()},
        **drawn.metrics,
        **reward_metrics(completions),
        "throughput/rollout_tokens_per_s": sampled / clock.seconds["rollout"],
        "throughput/update_tokens_per_s": updated * config.update_epochs / clock.seconds["update"],
        **{f"time/{phase}_s": value for phase, value in clock.seconds.items()},
        "time/step_s": seconds,
        "run/epoch": done / stage.epoch,
        "run/examples": progress.examples[stage.name],
        "run/compilations": len(sampler.model.compiled),
        "run/workers_replaced": sampler.runner.replaced if sampler.runner else 0,
    }
    records.record(stage.offset + done, metrics)


def recorded(config: LoggingConfig, stage: Stage, progress: RunProgress) -> bool:
    """Whether the rollout of the progress's iteration is recorded: every so many are, and the first and the last."""
    done = progress.stage_step
    ends = done in (1, stage.stop) or bool(progress.collapse)
    return bool(config.rollouts_every) and (done % config.rollouts_every == 0 or ends)


def record_rollout(
    records: Records,
    sampler: Sampler,
    stage: Stage,
    rollout: Rollout[np.ndarray],
    completions: Sequence[Completion],
    tokens: Callable[[int], Mapping[str, np.ndarray]],
) -> None:
    """Records completions of the progress's iteration, of the first ones also what is known of each token.

    Args:
        records: of the run.
        sampler: has the tokenizer.
        stage: `rl`.
        rollout: as sampled.
        completions: of it.
        tokens: see `learners.Learned`.
    """
    logging, step, rows = sampler.config.logging, stage.offset + records.progress.stage_step, []
    scores = tokens(min(logging.tokens_limit, logging.rollouts_limit, len(completions)))
    for row, completion in enumerate(completions[: logging.rollouts_limit]):
        record = {"step": step, **completion.record()}
        if any(row < len(array) for array in scores.values()):
            record["per_token"] = per_token(sampler.tokenizer, rollout, row, completion, scores, sampler.config.data)
        rows.append(record)
    records.writer.append("rollouts", rows)


def end_iteration(records: Records, sampler: Sampler, stage: Stage, state: TrainState) -> None:
    """Evaluates and saves after the progress's iteration, as the config says."""
    config, done = sampler.config.rl, records.progress.stage_step
    step, last = stage.offset + done, done == stage.stop
    if last or done % (config.evaluate_every or stage.epoch) == 0:
        evaluate_dev(records, sampler, state.params, step, best=BEST, parts=("warmup", "rl"))
    if last or done % (config.save_every or stage.epoch) == 0:
        records.save(step, state)
