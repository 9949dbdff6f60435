"""The run that trains a reward model: its samples, its loop, and the choice of the best on dev.

From settings to a trained model: `open_reward_run`, then `train`, by the loop and the records of the other stages.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from reft_jax.algorithms.classification import build_step
from reft_jax.algorithms.train_state import (
    TrainState,
    abstract_params,
    abstract_state,
    init_parts,
    init_state,
    make_optimizer,
)
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
from reft_jax.models.policy import Params
from reft_jax.parallel.processes import StopRequest, require_equal
from reft_jax.parallel.sharding import make_mesh, shard_count
from reft_jax.records.console import ProgressDisplay
from reft_jax.reward_model.reranking import by_question, evaluate_choices, evaluate_classification, score, scoring
from reft_jax.samples.file import Sample
from reft_jax.training.directory import open_records
from reft_jax.training.state import Run, Stage
from reft_jax.training.supervised import optimise

NAME, BEST = "reward_model", "reward_model_best"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardRun(Run):
    """A run that trains a reward model; made by `open_reward_run`."""

    train: SampleSet
    dev: SampleSet


def alone(config: Config) -> Config:
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
    settings, data = config.reward_model, config.data
    mesh = make_mesh(config.mesh, jax.devices())
    check_batches(config, shard_count(mesh, "batch"))
    with contextlib.ExitStack() as stack:
        console = stack.enter_context(ProgressDisplay(show=jax.process_index() == 0))
        given, test = (read_problems(s) if s.kind != "none" else [] for s in (data.dev, data.test))
        drawn = split_samples(read_files(settings.samples), data.dev_fraction, given)
        train, dev = (
            encode(part, config, tokenizer, name, console.message) for part, name in zip(drawn, ("train", "dev"))
        )
        everywhere = dataclasses.replace(config, distributed=DistributedConfig())
        require_equal({"settings": everywhere, "samples": (train.digest(), dev.digest())})
        params = abstract_params(Classifier(config.model, mesh), mesh, value_head=False)
        state = abstract_state(params, make_optimizer(settings.optimizer, 1), mesh)
        models = config.checkpoint.keep_best + 2  # the best, one of them to be replaced, and the last
        records = stack.enter_context(open_records(config, console, state=state, models=models))
        run = RewardRun(
            config=config,
            mesh=mesh,
            tokenizer=tokenizer,
            ids=special_ids(tokenizer),
            problems={"dev": [problem_of(samples[0]) for samples in by_question(dev.drawn)], "test": test},
            prompts={},
            examples={},
            score=lambda problems, completions: [],  # it samples nothing
            functions=(),
            runner=None,
            console=console,
            stop=stop,
            train=train,
            dev=dev,
            **vars(records),
        )
        run.link_best()
        yield run


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
    model, mesh, settings = run.config.model, run.mesh, run.config.reward_model
    epoch = steps_per_epoch(len(run.train.rows), settings.batch_size)
    stage = Stage(NAME, 0, epoch, epoch * settings.epochs, epoch * settings.epochs)
    optimizer = make_optimizer(settings.optimizer, stage.schedule)
    classifier = Classifier(model, mesh)
    params = abstract_params(classifier, mesh, value_head=False)
    state = run.resume(NAME, abstract_state(params, optimizer, mesh))
    if state is None:
        state = init_state(start_params(run, classifier, params), optimizer, mesh)
    build = lambda length: build_step(model, settings, mesh, total_steps=stage.schedule, length=length)
    programs = run.add_programs(NAME, build, len(settings.row_buckets))
    seed = run.seed("sft")  # no other stage of this run draws from it
    read_every, save_every = settings.evaluate_every or epoch, settings.save_every or epoch

    def draw(step: int) -> LabelledRows:
        indices = step_indices(seed, step, len(run.train.rows), settings.batch_size)
        return labelled_batch(run.train, indices, settings.batch_size, settings.row_buckets, run.ids.pad)

    def pause(step: int, state: TrainState) -> None:
        if step % epoch == 0 or step % read_every == 0:
            evaluate_dev(run, state.params, step)
        if step % epoch == 0 or step % save_every == 0:
            run.save(step, state)

    state = optimise(
        run,
        stage,
        state,
        draw=draw,
        program=lambda batch: programs[batch.tokens.shape[1:]],
        due=lambda step: any(step % every == 0 for every in (epoch, read_every, save_every)),
        pause=pause,
    )
    run.save_params(NAME, state.params)
    ranking = run.progress.best[BEST][0]
    dev = {"accuracy": "dev_accuracy", "classified": "dev_classified"}
    test_best = is_within(run.problems["dev"], run.problems["test"])
    facts: dict[str, Any] = {dev.get(name, name): value for name, value in ranking.items()}
    return {BEST: facts | ({"test_best": True} if test_best else {})}


def start_params(run: Run, classifier: Classifier, abstract: Params) -> Params:
    """The decoder to start from, without the output projection, and a fresh head."""
    settings = run.config.reward_model
    given = run.params_from_checkpoint(settings.init_from) if settings.init_from else run.start_params()
    decoder = {name: tree for name, tree in given["decoder"].items() if name in abstract["decoder"]}
    head: Params = {"class_head": abstract["class_head"]}
    return {"decoder": decoder, **init_parts(classifier, run.mesh, jax.random.key(run.config.seed), head)}


def evaluate_dev(run: RewardRun, params: Params, step: int) -> None:
    """Reranks dev, records it, and keeps `params` if they are among the best so far, by reranking, then by classes.

    Raises:
        Interrupted: the run was asked to stop; nothing is recorded then, and the progress says `unread`.
    """
    started, settings = time.monotonic(), run.config.reward_model
    run.progress.unread = True
    programs = run.add_programs("scoring", scoring(run.config, run.mesh), len(settings.row_buckets))
    scores = score(programs, params, run.dev, config=run.config, mesh=run.mesh, pad=run.ids.pad, check=run.stop.check)
    run.progress.unread = False
    choices = evaluate_choices(by_question(run.dev.drawn), scores)
    low, high = choices["rerank"]["interval"]
    metrics = {
        "rerank/accuracy": choices["rerank"]["accuracy"],
        "rerank/interval_low": low,
        "rerank/interval_high": high,
        "rerank/vote": choices["vote"]["accuracy"],
        "rerank/upper_bound": choices["upper_bound"]["accuracy"],
        "rerank/classification_accuracy": evaluate_classification(run.dev.unique, scores)["accuracy"],
        "time/evaluation_s": time.monotonic() - started,
    }
    run.writer.write(step, NAME, metrics)
    run.console.advance(run.progress.stage_step, metrics)
    reading = {name: metrics[f"rerank/{name}"] for name in ("accuracy", "classified")}
    run.keep_best(params, step, reading, best=BEST, parts=(NAME,))
