"""The paper's study in miniature: every method on the embedded problems, written to docs/study.md by this command.

    python -m benchmarks.study --out runs/study            # `make study`

Every method of reinforcement starts from the warm-up of its seed's quickstart run and sees about as many completions as
PPO does there. The package's own commands do it, each on a core of its own, for a second core helps so small a model
little; the same command goes on where it stopped. It took 60 minutes on two cores; slow ones take half as long again.
"""

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse

from reft_jax.reward_model.reranking import by_question
from reft_jax.samples.file import read_samples
from reft_jax.samples.voting import is_answer

Result = TypeVar("Result")
LAST = 8  # iterations over which the end of a run is averaged
CONFIG = "configs/quickstart.yaml"
GROUPS: Mapping[str, Any] = {"rl.rollout_batch_size": 64, "rl.samples_per_question": 4, "rl.epochs": 3}


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table: which model of which run, and how that run differs from the quickstart."""

    label: str
    run: str
    model: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


ALONE: Mapping[str, Any] = {"rl.algorithm": "self_training", "rl.self_training.gold_weight": 0.0}
NO_CRITIC: Mapping[str, Any] = {"rl.vf_coef": 0.0}  # the value head begins at 0 and stays there
NO_BASELINE: Mapping[str, Any] = {**NO_CRITIC, "rl.whiten_advantages": "false"}
REFT = Method("ReFT (PPO)", "base", "rl_best")
BARE = Method(
    "PPO without baseline, partial reward and KL",
    "bare",
    "rl_best",
    {**NO_BASELINE, "reward.wrong": 0.0, "rl.kl_coef": 0.0, "rl.track_kl": "true"},
)
METHODS = (
    Method("warm-up", "base", "warmup"),
    Method("SFT, best on dev", "base", "sft_best"),
    Method("offline self-training, 8 samples a question", "base-self-training", "sft_best"),
    Method("online self-training", "online", "rl_best", {"rl.algorithm": "self_training"}),
    Method("online self-training, right samples alone", "online-alone", "rl_best", ALONE),
    REFT,
    BARE,
    Method(
        "GRPO, 4 samples a question",
        "grpo",
        "rl_best",
        {"rl.algorithm": "grpo", "rl.kl_in": "loss", "rl.kl_estimator": "k3", **GROUPS},
    ),
    Method("RLOO, 4 samples a question", "rloo", "rl_best", {"rl.algorithm": "rloo", **GROUPS}),
)
"""Rows of the first table, for all seeds."""
ORDER = ("SFT, best on dev", "offline self-training, 8 samples a question", "online self-training", REFT.label)
"""From worst to best in most of the paper's columns."""

PARTS = (
    REFT,
    Method("without partial reward", "no-partial", "rl_best", {"reward.wrong": 0.0}),
    Method("without KL", "no-kl", "rl_best", {"rl.kl_coef": 0.0, "rl.track_kl": "true"}),
    Method("a critic of its own", "critic", "rl_best", {"rl.critic": "separate"}),
    Method("without critic, advantages whitened", "no-critic", "rl_best", NO_CRITIC),
    Method("without baseline: no critic, no whitening", "no-baseline", "rl_best", NO_BASELINE),
    BARE,
    Method("twice the learning rate", "fast", "rl_best", {"rl.optimizer.learning_rate": 1e-3}),
    Method("half the learning rate", "slow", "rl_best", {"rl.optimizer.learning_rate": 2.5e-4}),
    Method("4 samples a question, a fourth of the epochs", "groups", "rl_best", GROUPS),
)
"""Rows of the second table: ReFT, and what it is with one thing changed."""

SAMPLED = {"sft_best": "SFT, best on dev", "rl_best": REFT.label}
"""Models of the base run that are voted over and reranked."""


def command(log: Path, module: str, *arguments: object, allowed: Sequence[int] = (0,)) -> None:
    """Runs a command, its output appended to `log`, and says how long it took.

    Raises:
        RuntimeError: it ended with a code that is not `allowed`.
    """
    start = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        line = [sys.executable, "-m", module, *map(str, arguments)]
        code = subprocess.run(line, stdout=output, stderr=subprocess.STDOUT).returncode
    if code not in allowed:
        raise RuntimeError(f"exit code {code}, see {log}: {' '.join(line)}")
    print(f"{log.with_suffix('')}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


def options(values: Mapping[str, Any]) -> list[Any]:
    """Command-line options."""
    return [part for key, value in values.items() for part in (f"--{key}", value)]


def train(folder: Path, run: str, seed: int, changes: Mapping[str, Any]) -> None:
    """Trains a run; one that went wrong and was ended early counts as it stands."""
    changes = {"run_dir": folder / run, "seed": seed, **changes}
    command(folder / f"{run}.log", "reft_jax.train", "--config", CONFIG, *options(changes), allowed=(0, 3))


def self_train(folder: Path) -> None:
    """Offline self-training of the base run; it leaves the samples that it trained on."""
    command(folder / "base-self-training.log", "benchmarks.self_training", "--run", folder / "base")


def vote(folder: Path, model: str, samples: int) -> Path:
    """Samples the test set and counts votes; returns the file of figures."""
    sampled = folder / f"{model}-{samples}.jsonl"
    log, figures = sampled.with_suffix(".log"), sampled.with_suffix(".votes.json")
    checkpoint = folder / "base/checkpoints" / model
    command(log, "reft_jax.sample", checkpoint, sampled, "--split", "test", "--samples", samples)
    command(log, "reft_jax.evaluate", "--samples", sampled, "--k", 1, samples, "--json", figures)
    return figures


def rerank(folder: Path, model: str, samples: int, seed: int) -> Path:
    """Trains a reward model on the warm-up's samples, from `model`, and reranks the test set's; returns the figures."""
    sampled, run = folder / "base-self-training-samples.jsonl", folder / f"reward-model-{model}"
    log, figures = run.with_suffix(".log"), folder / f"{model}-{samples}.ranks.json"
    settings = {"samples": json.dumps([str(sampled)]), "init_from": folder / "base/checkpoints" / model, "epochs": 5}
    settings |= {"optimizer.learning_rate": 1e-3, "row_buckets": "[96]", "batch_size": 24, "microbatch_size": 24}
    changes = {"seed": seed, "run_dir": run} | {f"reward_model.{key}": value for key, value in settings.items()}
    command(log, "reft_jax.reward_model", "train", "--config", CONFIG, *options(changes))
    model_dir, tested = run / "checkpoints/reward_model_best", folder / f"{model}-{samples}.jsonl"
    command(log, "reft_jax.reward_model", "rerank", model_dir, tested, "--json", figures)
    return figures


def measure_noise(folder: Path, model: str) -> Path:
    """What a minibatch knows of the policy gradient at a model of the base run; returns the file of figures."""
    figures = folder / f"{model}.noise.json"
    if not figures.exists():
        arguments = folder / "base/checkpoints" / model, "--json", figures
        command(figures.with_suffix(".log"), "benchmarks.gradient_noise", *arguments)
    return figures


class Jobs:
    """Jobs on cores of their own where the system can pin them, begun in the order in which they are given."""

    def __init__(self, workers: int) -> None:
        cores = sorted(os.sched_getaffinity(0))[:workers] if hasattr(os, "sched_setaffinity") else []
        # Affinity is a thread's, and its children inherit it.
        pin = (lambda: os.sched_setaffinity(0, {cores.pop()})) if cores else None
        self._pool = ThreadPoolExecutor(len(cores) or workers, initializer=pin)
        self._given: list[Future[Any]] = []

    def give(self, job: Callable[..., Result], *args: Any, after: Sequence["Future[Any]"] = ()) -> "Future[Result]":
        """A job that waits for others, which must have been given before."""

        def run() -> Result:
            for other in after:
                other.result()
            return job(*args)

        self._given.append(self._pool.submit(run))
        return self._given[-1]

    def finish(self) -> None:
        """Waits for all jobs, or raises what one of them raised, after which no other begins."""
        done, _ = wait(self._given, return_when=FIRST_EXCEPTION)
        self._pool.shutdown(cancel_futures=True)
        for job in done:
            job.result()


def read(folder: Path, method: Method) -> dict[str, Any]:
    """The facts of a method's model from its run's summary; what never was read on dev stands at its warm-up."""
    summary = json.loads((folder / method.run / "summary.json").read_text(encoding="utf-8"))
    facts = summary.get(method.model) or json.loads((folder / "base/summary.json").read_text())["warmup"]
    return {**facts, "collapse": summary.get("collapse", "")}


Found = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Facts of a model by label and seed."""


def table(found: Found) -> list[str]:
    """Greedy accuracy on test: a row a method, a column a seed, their mean, and what is beyond ReFT seed by seed."""
    seeds, reft = list(next(iter(found.values()))), found[REFT.label]
    heads = ["greedy accuracy on test, %", *(f"seed {seed}" for seed in seeds), "mean", "beyond ReFT"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---|" * (len(heads) - 1)]
    for label, facts in found.items():
        values = {seed: 100 * facts[seed]["accuracy"] for seed in seeds}
        beyond = [values[seed] - 100 * reft[seed]["accuracy"] for seed in seeds]
        cells = [
            f"{values[seed]:.1f}{'*' if facts[seed]['collapse'] else ''} "
            f"({' to '.join(f'{100 * bound:.1f}' for bound in facts[seed]['interval'])})"
            for seed in seeds
        ]
        cells += [f"**{statistics.mean(values.values()):.1f}**"]
        cells += [f"{statistics.mean(beyond):+.1f} ({min(beyond):+.1f} to {max(beyond):+.1f})" if any(beyond) else ""]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def against_the_paper(found: Found) -> str:
    """Which neighbours of the paper's order do not stand so here."""
    means = {label: statistics.mean(facts["accuracy"] for facts in found[label].values()) for label in ORDER}
    pairs = [(worse, better) for worse, better in itertools.pairwise(ORDER) if means[worse] > means[better]]
    turned = [f"{worse} is above {better}" for worse, better in pairs]
    order = " < ".join(ORDER)
    return f"The paper's order, in most of its columns: {order}. Here {'; '.join(turned) or 'it is the same'}."


def curve(run: Path, stage: str) -> list[tuple[int, float]]:
    """Dev accuracy of a stage in per cent, after how many sequences."""
    trained, points = 0, []
    for record in map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        if record["stage"] == stage:
            trained = record.get("run/examples", trained)
            if "eval/accuracy" in record:
                points.append((trained, 100 * record["eval/accuracy"]))
    return points


def draw(folder: Path, path: Path) -> None:
    """Dev accuracy of a seed's runs over completions or annotations trained on, the warm-up's included."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "reft_jax"  # the same file for the same runs
    from matplotlib import pyplot

    warmup = json.loads((folder / "base/summary.json").read_text(encoding="utf-8"))["warmup"]["examples"]
    begin = [point for point in curve(folder / "base", "sft") if point[0] == warmup]
    figure, axes = pyplot.subplots(figsize=(7.5, 4.2), layout="constrained")
    for method in METHODS:
        if method.model == "sft_best":
            points = curve(folder / method.run, "sft")
        elif method.model == "rl_best":
            points = begin + [(warmup + trained, share) for trained, share in curve(folder / method.run, "rl")]
        else:  # the warm-up is a point of the others
            continue
        axes.plot(*zip(*points), marker=".", alpha=0.8, label=method.label)
    axes.set(xlabel="sequences trained on", ylabel="dev accuracy, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def main(
    out: Path = Path("runs/study"),
    seeds: tuple[int, ...] = (31, 32, 33),
    samples: int = 100,
    fewer: int = 10,
    workers: int = 2,
    report: Path = Path("docs/study.md"),
) -> None:
    """Trains what is not there yet, votes, reranks, and writes the report and its figure beside it.

    Args:
        out: folder of the runs.
        seeds: of the runs; the first is voted over and reranked with most samples.
        samples: completions of a test question for voting and reranking, on the first seed.
        fewer: the same for voting on the others.
        workers: commands at the same time.
        report: Markdown file that is written.
    """
    start, jobs = time.monotonic(), Jobs(workers)
    folders = {seed: out / f"seed-{seed}" for seed in seeds}
    base = {seed: jobs.give(train, folder, "base", seed, {}) for seed, folder in folders.items()}
    votes: dict[tuple[str, int], Future[Path]] = {}
    ranks: dict[str, Future[Path]] = {}
    for seed, folder in folders.items():
        offline = jobs.give(self_train, folder, after=[base[seed]])
        give_runs(jobs, METHODS, folder, seed, base[seed])
        for model in SAMPLED:
            number = samples if seed == seeds[0] else fewer
            votes[model, seed] = jobs.give(vote, folder, model, number, after=[base[seed]])
            if seed == seeds[0]:
                made: list[Future[Any]] = [offline, votes[model, seed]]
                ranks[model] = jobs.give(rerank, folder, model, samples, seed, after=made)
    first = seeds[0]
    noise = {
        model: jobs.give(measure_noise, folders[first], model, after=[base[first]]) for model in ("warmup", "rl_best")
    }
    some = seeds[:2]
    for seed in some:
        give_runs(jobs, PARTS, folders[seed], seed, base[seed])
    jobs.finish()

    figure = report.with_suffix(".svg")
    draw(folders[first], figure)
    methods = {m.label: {seed: read(folders[seed], m) for seed in seeds} for m in METHODS}
    parts = {m.label: {seed: read(folders[seed], m) for seed in some} for m in PARTS}
    lines = [
        "# The study in miniature",
        "",
        "Written by `make study`: the embedded problems, the quickstart's model and settings, one run a cell. Every",
        "method of reinforcement starts from its seed's warm-up and sees about as many completions. Models are chosen",
        "on dev. In brackets: Wilson's 95 % interval of a run over the questions of the test set, which all share;",
        "and the least and the most of the differences from ReFT on the same seed.",
        "",
        *table(methods),
        "",
        against_the_paper(methods),
        "",
        f"![dev accuracy over sequences trained on, seed {first}]({figure.name})",
        "",
        costs(methods),
        "",
        "## Voting and reranking",
        "",
        f"{samples} samples a question at temperature 1. The reward models start from the model whose samples they",
        "rank, and are trained on the warm-up's samples of the training questions, eight each. A vote hears how often",
        "an answer was drawn; a reward model is asked once about each different completion, right or wrong, however",
        "often it was drawn, and so can do worse than one sample. `chance` is a choice at random among the same",
        "completions, those that have an answer.",
        "",
        *voting({key: job.result() for key, job in votes.items()}, {key: job.result() for key, job in ranks.items()}),
        "",
        "## What PPO is made of",
        "",
        "ReFT with one thing changed, on the first seeds.",
        "",
        *table(parts),
        *ended({**methods, **parts}),
        "",
        f"How the runs of seed {first} end, by the means of their last {LAST} iterations:",
        "",
        *endings(folders[first], [*METHODS, *PARTS[1:]]),
        "",
        "## What a minibatch knows of the policy gradient",
        "",
        f"From `benchmarks/gradient_noise.py`, seed {first}: a completion of reward 1 or 0 counts for its reward less",
        "the baseline, which is 0 in likelihood of right completions. The ratio is that of the squared norm of the",
        "mean gradient to the mean squared distance of a minibatch's from it; the cosine is that of the mean with the",
        "policy gradient; ± is one standard error, by leaving out minibatches.",
        "",
        *noises({model: job.result() for model, job in noise.items()}),
    ]
    report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {report} and {figure} after {(time.monotonic() - start) / 60:.0f} minutes", file=sys.stderr)


def give_runs(jobs: Jobs, methods: Sequence[Method], folder: Path, seed: int, base: "Future[Any]") -> None:
    """Trains the methods that differ from the base run, from its warm-up."""
    begin = {"pretrain.epochs": 0, "sft.schedule_epochs": 0, "rl.init_from": folder / "base/checkpoints/warmup"}
    for method in methods:
        if method.changes:
            jobs.give(train, folder, method.run, seed, {**begin, **method.changes}, after=[base])


def costs(found: Found) -> str:
    """Sequences and seconds that the first seed's models took, those of reinforcement without the warm-up."""
    seed = next(iter(found[REFT.label]))
    of = {label: (facts[seed]["examples"], facts[seed]["seconds"]) for label, facts in found.items()}
    of[REFT.label] = tuple(all_of_it - first for all_of_it, first in zip(of[REFT.label], of["warm-up"]))
    parts = [f"{label}: {examples:,} in {seconds:.0f} s" for label, (examples, seconds) in of.items()]
    return (
        "Sequences trained on until the chosen model (each pass counts), and seconds of sampling and training on one "
        f"core, seed {seed}; for online methods after the warm-up, for offline self-training without its samples: "
        f"{'; '.join(parts)}."
    )


def ended(found: Found) -> list[str]:
    """The runs that ended early, and why."""
    reasons = [
        f"{label}, seed {seed}: {facts['collapse']}"
        for label, by_seed in found.items()
        for seed, facts in by_seed.items()
        if facts["collapse"]
    ]
    return ["", f"Ended early (*): {'; '.join(reasons)}."] if reasons else []


def endings(folder: Path, methods: Sequence[Method]) -> list[str]:
    """What the policies of one seed have become, and how far a critic tells what a completion will bring."""
    shown = {
        "reward/correct": "right, %",
        "rl/entropy": "entropy, nats a token",
        "rl/sequence_kl": "KL, nats a response",
        "rl/explained_variance": "explained variance",
        "response/length_mean": "tokens",
    }
    lines = ["| | " + " | ".join(shown.values()) + " |", "|---|" + "---|" * len(shown)]
    for method in {method.run: method for method in methods if method.model == "rl_best"}.values():
        text = (folder / method.run / "metrics.jsonl").read_text(encoding="utf-8")
        steps = [record for record in map(json.loads, text.splitlines()) if "reward/correct" in record][-LAST:]
        cells = []
        for key in shown:
            values = [record[key] for record in steps if record.get(key) is not None]
            scale = 100 if key == "reward/correct" else 1
            cells.append(f"{scale * statistics.mean(values):.3g}" if values else "")
        lines.append(f"| {method.label} | " + " | ".join(cells) + " |")
    return lines


def voting(votes: Mapping[tuple[str, int], Path], ranks: Mapping[str, Path]) -> list[str]:
    """The table of the first seed, reranked, and that of votes on all seeds."""
    seeds = list(dict.fromkeys(seed for _, seed in votes))
    load = lambda path: json.loads(path.read_text(encoding="utf-8"))
    lines = [
        f"| test, %, seed {seeds[0]} | one sample | majority | reward model | chance | any right |",
        "|---|---|---|---|---|---|",
    ]
    for model, path in ranks.items():
        single, ranked = load(votes[model, seeds[0]])["results"]["maj@1"], load(path)["first"]["all"]
        cells = [share(single["value"], single["interval"])]
        chosen = {kind: share(facts["accuracy"], facts["interval"]) for kind, facts in ranked.items()}
        chance = by_chance(path.with_suffix("").with_suffix(".jsonl"))  # the samples, beside the figures
        cells += [chosen["vote"], chosen["rerank"], f"{100 * chance:.1f}", chosen["upper_bound"]]
        lines.append(f"| {SAMPLED[model]} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| majority, % | " + " | ".join(f"seed {seed}" for seed in seeds) + " |",
        "|---|" + "---|" * len(seeds),
    ]
    for model, label in SAMPLED.items():
        cells = []
        for seed in seeds:
            results = load(votes[model, seed])["results"]
            most = max((name for name in results if name.startswith("maj@")), key=lambda name: int(name[4:]))
            cells.append(f"{share(results[most]['value'], results[most]['interval'])}, {most}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def by_chance(sampled: Path) -> float:
    """How often one of a question's different completions with an answer is right, the mean over a file's questions."""
    shares = []
    for samples in by_question(list(read_samples(sampled))):
        choices = {s.completion: s.correct for s in samples if is_answer(s.value, s.answer_kind)}
        shares.append(statistics.mean(choices.values()) if choices else 0.0)
    return statistics.mean(shares)


def noises(figures: Mapping[str, Path]) -> list[str]:
    """The tables of `benchmarks.gradient_noise`."""
    found = {model: json.loads(path.read_text(encoding="utf-8")) for model, path in figures.items()}
    names = {"warmup": "warm-up", "rl_best": REFT.label}
    heads = [f"{names[model]}: ratio | cosine" for model in found]
    lines = ["| loss averaged over | baseline | " + " | ".join(heads) + " |", "|---|---|" + "---|---|" * len(found)]
    for rows in zip(*(facts["estimators"] for facts in found.values())):
        cells = [
            f"{row['signal_to_noise']['value']:.3f} ± {row['signal_to_noise']['error']:.3f} | "
            f"{row['cosine']['value']:.2f} ± {row['cosine']['error']:.2f}"
            for row in rows
        ]
        lines.append(f"| {rows[0]['average']} | {rows[0]['baseline']} | " + " | ".join(cells) + " |")
    says = [
        f"{names[model]}: {100 * facts['share_right']:.0f} % of {facts['completions']:,} completions are right. The "
        f"gradient of a completion's mean log-prob has a mean squared norm of {facts['right']['squared_norm']:.1f} "
        f"where it is right, and of {facts['wrong']['squared_norm']:.1f} where it is wrong."
        for model, facts in found.items()
    ]
    return [*lines, "", " ".join(says)]


def share(value: float, interval: Sequence[float]) -> str:
    """A share with its 95 % interval, in per cent."""
    return f"{100 * value:.1f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
