"""The run that trains a reward model: its samples, its loop, and the choice of the best on dev.

From settings to a trained model: `open_reward_run`, then `train`, by the loop and the records of the other stages.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from reft_jax.algorithms.steps import steps
from reft_jax.algorithms.train_state import TrainState, abstract_stage, init_parts, init_state, make_optimizer
from reft_jax.config import Config, DistributedConfig, SourceConfig
from reft_jax.config.validation import check_batches
from reft_jax.data.batches import step_indices, steps_per_epoch
from reft_jax.data.encoding import OverlongCount
from reft_jax.data.problem_sets import Log
from reft_jax.data.readers import is_within, read_problems
from reft_jax.data.samples import (
    LabelledRows,
    SampleSet,
    encode_samples,
    labelled_batch,
    problem_of,
    read_files,
    split_samples,
)
from reft_jax.data.tokenizers import special_ids
from reft_jax.models.classifier import Classifier
from reft_jax.models.params import Params
from reft_jax.parallel.compilation import CompiledSteps
from reft_jax.parallel.processes import StopRequest, digest, require_equal
from reft_jax.parallel.sharding import make_mesh, shard_count
from reft_jax.records.log import LOG_FILE
from reft_jax.reward_model.reranking import by_question, correct_probs, evaluate_choices, evaluate_classification
from reft_jax.samples.file import Sample
from reft_jax.training.directory import open_records
from reft_jax.training.model import Model
from reft_jax.training.startup import open_display
from reft_jax.training.state import Records, Stage, order_seed
from reft_jax.training.supervised import optimise

NAME, BEST = "reward_model", "reward_model_best"


class RewardRun(NamedTuple):
    """A run that trains a reward model; made by `open_reward_run`."""

    records: Records
    model: Model
    train: SampleSet
    dev: SampleSet
    dev_in_test: bool
    """Whether the questions of dev are questions of test, so that what is chosen is test-best."""
    stage: Stage


def reward_model_only(config: Config) -> Config:
    """The config with all other stages off, which a reward model's run has not, and no problems but those that split.

    With a source of its own for dev, test stays as well: what is chosen on a dev that is part of test is test-best.

    Raises:
        ValueError: it has no samples.
    """
    if not config.reward_model.samples:
        raise ValueError("reward_model.samples is empty: name the files of samples to train on")
    data, none = config.data, SourceConfig()
    return dataclasses.replace(
        config,
        data=dataclasses.replace(data, train=none, test=none if data.dev.kind == "none" else data.test),
        pretrain=dataclasses.replace(config.pretrain, epochs=0, source=SourceConfig()),
        sft=dataclasses.replace(config.sft, schedule_epochs=0),
        rl=dataclasses.replace(config.rl, epochs=0, init_from=""),
    )


@contextlib.contextmanager
def open_reward_run(config: Config, tokenizer: Any, stop: StopRequest) -> Iterator[RewardRun]:
    """Reads the samples, takes up the last resume point, and closes everything at the end.

    Raises:
        FileNotFoundError: there are no samples.
        ValueError: bad samples or problems, rows that are too long, a mesh that does not fit the devices.
        OSError: no room for the checkpoints.
    """
    settings, data, optional = config.reward_model, config.data, config.reward.by_functions_alone
    mesh = make_mesh(config.mesh, jax.devices())
    check_batches(config, shard_count(mesh, "batch"))
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(open_display(Path(config.run_dir) / LOG_FILE))
        given, test = (
            read_problems(source, data.bad_rows, display.message, data.answer, gold_optional=optional)
            if source.kind != "none"
            else []
            for source in (data.dev, data.test)
        )
        drawn = split_samples(read_files(settings.samples), data.dev_fraction, given)
        train, dev = (
            encode(part, config, tokenizer, name, display.message) for part, name in zip(drawn, ("train", "dev"))
        )
        everywhere = dataclasses.replace(config, distributed=DistributedConfig())
        require_equal({"settings": everywhere, "samples": (train.digest(), dev.digest())})
        epoch = steps_per_epoch(len(train.rows), settings.batch_size)
        total = epoch * settings.epochs
        stage = Stage(name=NAME, offset=0, epoch=epoch, schedule=total, stop=total)
        ids = special_ids(tokenizer)
        compiled = CompiledSteps(steps(config, mesh, ids=ids, schedules={NAME: stage.schedule}), say=display.message)
        state = abstract_stage(Classifier(config.model, mesh), mesh, settings.optimizer, stage.schedule)
        models = config.checkpoint.keep_best + 2  # the best, one of them to be replaced, and the last
        records = stack.enter_context(
            open_records(
                config,
                display,
                stages={NAME: stage},
                contents={"reward_model.samples": digest([train.digest(), dev.digest()])},
                state=state,
                models=models,
            )
        )
        questions = [problem_of(samples[0]) for samples in by_question(dev.drawn)]
        yield RewardRun(
            records=records,
            model=Model(config=config, mesh=mesh, ids=ids, compiled=compiled, stop=stop),
            train=train,
            dev=dev,
            dev_in_test=is_within(questions, test),
            stage=stage,
        )


def encode(drawn: Sequence[Sample], config: Config, tokenizer: Any, name: str, say: Log) -> SampleSet:
    """Samples with their rows, counted.

    Raises:
        ValueError: there are none, or none is short enough; see also `encode_completions`.
    """
    longest, overlong = max(config.reward_model.row_buckets), config.data.overlong
    samples, count = encode_samples(drawn, tokenizer, config.data.templates, max_length=longest, overlong=overlong)
    if count != OverlongCount():
        say(f"{name} samples: {count.targets} are too long; {count.dropped} dropped")
    if not samples.rows:
        raise ValueError(f"there are no {name} samples: give those of more questions, or change data.dev_fraction")
    right, unique = sum(sample.correct for sample in samples.unique), len(samples.unique)
    if name == "train" and right in (0, unique):
        raise ValueError(
            f"all {unique} unique train samples are {'right' if right else 'wrong'}: a reward model learns to tell the "
            "two apart, give samples of both"
        )
    say(
        f"{name} samples: {len(by_question(drawn)):,} questions, {len(drawn):,} completions, {unique:,} unique, "
        f"{right / unique:.1%} of these right"
    )
    return samples


def train(run: RewardRun) -> dict[str, Any]:
    """All steps that are not done yet; leaves the model under the names of the last and the best, returns the summary.

    Raises:
        Interrupted: the run was asked to stop, and has saved where it was.
    """
    records, model, stage, settings = run.records, run.model, run.stage, run.model.config.reward_model
    classifier = Classifier(model.config.model, model.mesh)
    abstract = abstract_stage(classifier, model.mesh, settings.optimizer, stage.schedule)
    state = records.resume(NAME, abstract)
    if state is None:
        params = start_params(model, classifier, abstract.params)
        state = init_state(params, make_optimizer(settings.optimizer, stage.schedule), model.mesh)
    seed = order_seed(model.config, "sft")  # no other stage of this run draws from it
    epoch = stage.epoch
    evaluate_every, save_every = settings.evaluate_every or epoch, settings.save_every or epoch

    def draw(step: int) -> LabelledRows:
        indices = step_indices(seed, step, len(run.train.rows), settings.batch_size)
        return labelled_batch(run.train, indices, settings.batch_size, settings.row_buckets, model.ids.pad)

    def pause(step: int, state: TrainState) -> None:
        if step % epoch == 0 or step % evaluate_every == 0:
            evaluate_dev(run, state.params, step)
        if step % epoch == 0 or step % save_every == 0:
            records.save(step, state)

    state = optimise(
        records,
        model,
        stage,
        state,
        draw=draw,
        compiled=lambda batch: model.compiled.get(NAME, batch.tokens.shape[1]),
        due=lambda step: any(step % every == 0 for every in (epoch, evaluate_every, save_every)),
        pause=pause,
    )
    records.save_params(NAME, state.params)
    dev = {"accuracy": "dev_accuracy", "classification_accuracy": "dev_classification_accuracy"}
    facts: dict[str, Any] = {dev.get(name, name): value for name, value in records.progress.best[BEST][0].items()}
    return {BEST: facts | ({"test_best": True} if run.dev_in_test else {})}


def start_params(model: Model, classifier: Classifier, abstract: Params) -> Params:
    """The decoder to start from, without the output projection, and a fresh head."""
    init_from = model.config.reward_model.init_from
    given = model.params_from_checkpoint(Path(init_from)) if init_from else model.start_params()
    decoder = {name: tree for name, tree in given["decoder"].items() if name in abstract["decoder"]}
    head: Params = {"class_head": abstract["class_head"]}
    return {"decoder": decoder, **init_parts(classifier, model.mesh, jax.random.key(model.config.seed), head)}


def evaluate_dev(run: RewardRun, params: Params, step: int) -> None:
    """Reranks dev, records it, and saves `params` if they are among the best so far, by reranking, then by classes.

    Raises:
        Interrupted: the run was asked to stop; nothing is recorded then, and the progress says `evaluation_pending`.
    """
    started, model, progress = time.monotonic(), run.model, run.records.progress
    progress.evaluation_pending = True
    probs = correct_probs(
        model.compiled,
        params,
        run.dev,
        model.config.reward_model,
        mesh=model.mesh,
        pad=model.ids.pad,
        check=model.stop.check,
    )
    progress.evaluation_pending = False
    choices = evaluate_choices(by_question(run.dev.drawn), probs)
    low, high = choices["rerank"]["interval"]
    metrics = {
        "rerank/accuracy": choices["rerank"]["accuracy"],
        "rerank/interval_low": low,
        "rerank/interval_high": high,
        "rerank/vote": choices["vote"]["accuracy"],
        "rerank/upper_bound": choices["upper_bound"]["accuracy"],
        "rerank/classification_accuracy": evaluate_classification(run.dev.unique, probs)["accuracy"],
        "time/evaluation_s": time.monotonic() - started,
    }
    run.records.show(step, metrics)
    figures = {name: metrics[f"rerank/{name}"] for name in ("accuracy", "classification_accuracy")}
    run.records.save_if_best(params, step, figures, best=BEST, parts=(NAME,))
