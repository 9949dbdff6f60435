"""From what the compiler said of each step to an answer: what is in memory together, does it fit, what to change.

No compilation shows what a run holds at once: while one step runs, the others' data stay where they are. `phases` adds
that up, following `supervised` and `reinforcement`.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reft_jax.config import Config
from reft_jax.preflight import bill
from reft_jax.preflight.devices import GPU_POOL, Target

PARTS = {
    "params": "params",
    "adam": "Adam",
    "reference": "reference",
    "weights": "sampling",
    "cache": "KV cache",
    "work": "work",
    "code": "code",
}
"""What is in memory, and its column: the policy and its optimizer, the frozen reference, the weights as laid out for
sampling, the KV cache, all else that a step needs (batch, activations, gradients, outputs), and the programs."""
UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3}

Plan = Mapping[str, Any]
Measures = Mapping[str, Mapping[str, Any]]


def assess(
    config: Config,
    target: Target,
    plan: Plan,
    measures: Measures,
    *,
    problems: int = 0,
    mean: bill.Lengths | None = None,
) -> dict[str, Any]:
    """The whole answer as plain data, as it goes to JSON.

    Args:
        config: of the run.
        target: the devices.
        plan: of `preflight_steps.plan`.
        measures: of each step, of `preflight_steps.measure`, with the compiler's own `findings`.
        problems: to train on, for the hours of the whole; 0 where that is not asked.
        mean: tokens of a row on average, for the estimate of time.
    """
    found = list(phases(config, plan, measures))
    for phase in found:
        phase["spare"] = None if phase["total"] is None else target.usable - phase["total"]
    over = [phase for phase in found if phase["spare"] is None or phase["spare"] < 0]
    measured = [phase for phase in found if phase["total"] is not None]
    fullest = max(measured, key=lambda phase: phase["total"], default=None)
    return {
        "target": {**dataclasses.asdict(target), "usable": target.usable},
        "model": {"path": config.model.path, "parameters": plan["parameters"]},
        "mesh": plan["mesh"],
        "fits": not over,
        "fullest": fullest and {name: fullest[name] for name in ("stage", "step", "total", "spare")},
        "pool_fraction": pool_fraction(target, fullest),
        "phases": found,
        "steps": {name: {**plan["steps"][name], **measures[name]} for name in measures},
        "findings": list(findings(plan, measures)),
        "changes": list(changes(config, target, plan, over)) if over else [],
        "bill": bill.bill(config, target, plan, measures, problems=problems, mean=mean),
    }


SAMPLING = tuple(f"{step}{drawn}" for drawn in ("", "_filtered") for step in ("prefill", "prefill_shared", "decode"))

STAGES = {
    "pretrain": ("pretrain",),
    "sft": ("sft", "layout", *SAMPLING),
    "rl": ("layout", *SAMPLING, "critic_experience", "critic_update", "experience", "update"),
    "reward_model": ("reward_model", "classify"),
}
"""The steps of each stage, in their order; the last is a run of its own."""


def phases(config: Config, plan: Plan, measures: Measures) -> Iterator[dict[str, Any]]:
    """What is in the memory of one device while each step of each stage runs; `total` is None where it was refused."""
    steps, adapted = plan["steps"], config.model.lora.rank > 0
    for stage, names in STAGES.items():
        state = steps.get("update" if stage == "rl" else stage, {}).get("arguments")
        if not state:
            continue
        own = {name for name in measures if (name in STAGES["reward_model"]) == (stage == "reward_model")}
        code = sum(measures[name].get("code", 0) * steps[name]["bucket"][-1] for name in own)
        held = dict.fromkeys(PARTS, 0) | {"params": state["params"], "adam": state["optimizer"], "code": code}
        scored = stage == "rl" and config.rl.scores_reference
        if scored and not adapted:  # adapters off, the policy is its own reference
            held["reference"] = plan["decoder"]
        for step in names:
            if step in measures:
                parts = held | _parts_of(step, plan, measures)
                total = None if "refused" in measures[step] else sum(parts.values())
                yield {"stage": stage, "step": step, "parts": parts, "total": total}
        if stage in ("sft", "rl") and adapted:  # the adapters are merged into a copy
            parts = held | {"work": plan["decoder"]}
            yield {"stage": stage, "step": "save", "parts": parts, "total": sum(parts.values())}


def _parts_of(step: str, plan: Plan, measures: Measures) -> dict[str, int]:
    """What a step adds to the state of its stage."""
    parts, steps, found = {}, plan["steps"], measures[step]
    arguments = steps[step]["arguments"]
    if "layout" in measures and step in ("layout", *SAMPLING):
        parts["weights"] = next(steps[name]["arguments"]["weights"] for name in SAMPLING if name in steps)
    if "refused" not in found:
        needed = found["needed"] - found["argument"]
        needed -= found["output"] if step == "layout" else 0  # these are the weights
        parts["cache"] = arguments.get("cache", 0)
        parts["work"] = needed + arguments.get("batch", 0)
    return parts


def findings(plan: Plan, measures: Measures) -> Iterator[str]:
    """What a person should know besides whether it fits."""
    for name, found in measures.items():
        if "refused" in found:
            yield f"{name}: refused by the compiler: {found['refused']}"
            continue
        yield from (f"{name}: {text}" for text in found["findings"])
        if found["not_aliased"]:
            names, size = sorted(found["not_aliased"]), text_of(sum(found["not_aliased"].values()))
            yield f"{name}: {len(names)} donated inputs ({size}) are not reused for an output, such as {names[0]}"
        if found["open_loops"] > name.startswith("decode"):  # it ends when all rows have
            yield f"{name}: {found['open_loops']} loops of unknown length; their collectives are counted by the turn"


def pool_fraction(target: Target, fullest: Mapping[str, Any] | None) -> float:
    """The share of a GPU that JAX has to be told to take, where what it takes by itself is not enough; else 0."""
    if target.platform != "gpu" or not target.reserve or not fullest or fullest["total"] <= GPU_POOL * target.memory:
        return 0.0
    return math.floor(100 * target.usable / target.memory) / 100


def changes(config: Config, target: Target, plan: Plan, over: list[dict[str, Any]]) -> Iterator[str]:
    """What would make the phases in `over` smaller, cheapest first."""
    model, shards = config.model, plan["shards"]
    steps = {phase["step"] for phase in over}
    training = [
        step for step in ("pretrain", "sft", "update", "experience", "reward_model", "classify") if step in steps
    ]
    sections = {"update": "rl", "experience": "rl", "classify": "reward_model"}
    for section in dict.fromkeys(sections.get(step, step) for step in training):
        yield from _smaller_microbatch(config, section, shards)
    if training and model.remat == "none":
        yield "model.remat: dots: what lies between matrix products is computed again, not kept"
    if training and model.remat != "full":
        yield "model.remat: full: a layer's activations are computed again, not kept; a third more compute"
    yield from _smaller_logits(config, target, plan, [step for step in training if step not in STAGES["reward_model"]])
    if model.dtype == "float32":
        yield "model.dtype: bfloat16: halves activations, KV cache and the weights that are sampled with"
    if steps & {*SAMPLING} and (slots := plan["slots"]) > 1:
        yield f"generation.slots: {slots} -> {slots // 2}, down to 1: a smaller KV cache, and more calls"
    if steps & {*SAMPLING, "layout"} and config.generation.weight_layout == "replicated":
        yield "generation.weight_layout: auto: each device holds only its share of the weights while sampling"
    if steps & {*SAMPLING}:
        yield "generation.max_new_tokens or generation.prompt_buckets: smaller, for the KV cache grows with both"
    if plan["mesh"]["data"] > 1:
        yield "mesh: {data: 1, fsdp: -1}: weights and Adam's moments are split over all devices, not copied to each"
    if not model.lora.rank and steps - set(STAGES["reward_model"]):
        yield "model.lora.rank: 16: Adam's moments for adapters alone, and no second copy of the decoder as reference"
    if model.param_dtype == "float32" and model.lora.rank:
        yield "model.param_dtype: bfloat16: halves the frozen weights; adapters stay in float32"
    held = max(sum(phase["parts"][part] for part in ("params", "adam", "reference")) for phase in over)
    if target.platform == "cpu":
        yield f"a larger machine: weights, moments and reference alone take {text_of(held * target.count)}"
    else:
        least = math.ceil(held * plan["mesh"]["fsdp"] * plan["mesh"]["tensor"] / target.usable)
        yield f"more devices on mesh.fsdp: weights, moments and reference alone fill {least} of these"


def _smaller_microbatch(config: Config, section: str, shards: int) -> Iterator[str]:
    stage = getattr(config, section)
    batch = stage.minibatch_size if section == "rl" else stage.batch_size
    smaller = [size for size in range(shards, stage.microbatch_size, shards) if batch % size == 0]
    if smaller:
        yield (
            f"{section}.microbatch_size: {stage.microbatch_size} -> {smaller[-1]}, down to {smaller[0]}: fewer rows at "
            "once, the same gradient"
        )


def _smaller_logits(config: Config, target: Target, plan: Plan, training: list[str]) -> Iterator[str]:
    sections = {step: getattr(config, step if step in ("pretrain", "sft") else "rl") for step in training}
    tokens = {step: of.microbatch_size * plan["steps"][step]["bucket"][2] for step, of in sections.items()}
    step = max(tokens, key=lambda step: tokens[step], default="")
    size = 4 * tokens.get(step, 0) * plan["vocabulary"] // plan["shards"] // plan["mesh"]["tensor"]
    if size > 0.01 * target.usable and not 0 < config.model.logits_chunk < tokens[step]:
        yield f"model.logits_chunk: {tokens[step] // 4}: a quarter of {step}'s logits at once; all have {text_of(size)}"


def text_of(size: float) -> str:
    """A number of bytes in a unit of its own, three digits."""
    unit = next((unit for unit in UNITS if abs(size) >= UNITS[unit]), "kB")
    value = size / UNITS[unit]
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f} {unit}"


def show(report: Mapping[str, Any], console: Console) -> None:
    """Prints the answer."""
    model, target = report["model"], report["target"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    kept = (
        f", of which {text_of(target['reserve'])} stay free for {target['reserved_for']}" if target["reserve"] else ""
    )
    count = f"{target['count']} device{'s' * (target['count'] > 1)} ({mesh})"
    console.print(
        f"\n{model['path'] or 'A fresh model'}, {model['parameters'] / 1e6:,.1f} million parameters, "
        f"on {target['name']}: {count} of {text_of(target['memory'])}{kept}",
        highlight=False,
    )
    unit = "GB" if max((phase["total"] or 0 for phase in report["phases"]), default=0) >= 0.5e9 else "MB"
    for title, table in (
        (f"In the memory of a device while a step runs, {unit}", _phase_table(report, UNITS[unit])),
        (f"Each step as compiled, in its largest bucket, {unit} on a device", _step_table(report, UNITS[unit])),
        ("Between devices: executions, and bytes of the arrays they work on", _traffic_table(report)),
    ):
        console.print(f"\n[bold]{title}[/bold]", highlight=False)
        console.print(table)
    if report["bill"]:
        console.print("\n[bold]Time[/bold]")
        for line in bill.lines(report["bill"]):
            console.print(Text(line))
    for title, lines in (("Findings", report["findings"]), ("What to change", report["changes"])):
        if lines:
            console.print(f"\n[bold]{title}[/bold]")
        for line in lines:
            console.print(Text(f"  - {line}"))
    console.print(verdict(report))


def verdict(report: Mapping[str, Any]) -> Text:
    """The answer in a line."""
    name, fullest = report["target"]["name"], report["fullest"]
    refused = [f"{phase['stage']} {phase['step']}" for phase in report["phases"] if phase["total"] is None]
    pool = f" with XLA_PYTHON_CLIENT_MEM_FRACTION={report['pool_fraction']}" if report["pool_fraction"] else ""
    text = f"\nFits {name}{pool}: " if report["fits"] else f"\nDoes not fit {name}: "
    if refused:
        text += f"{', '.join(refused)} refused by the compiler. "
    if fullest and (fullest["spare"] < 0 or not refused):
        side = "to spare" if fullest["spare"] >= 0 else "too much"
        text += (
            f"{fullest['stage']} {fullest['step']} is the fullest, with {text_of(fullest['total'])} of "
            f"{text_of(report['target']['usable'])}: {text_of(abs(fullest['spare']))} {side}."
        )
    return Text(text, style="bold green" if report["fits"] else "bold red")


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in left:
        table.add_column(column)
    for column in right:
        table.add_column(column, justify="right")
    return table


def _phase_table(report: Mapping[str, Any], unit: float) -> Table:
    shown = [part for part in PARTS if any(phase["parts"][part] for phase in report["phases"])]
    table = _table(("stage", "step"), (*(PARTS[part] for part in shown), "total", "spare"))
    for phase in report["phases"]:
        cells = [f"{phase['parts'][part] / unit:.2f}" if phase["parts"][part] else "-" for part in shown]
        ends = ("refused", "") if phase["total"] is None else (phase["total"] / unit, phase["spare"] / unit)
        cells += [end if isinstance(end, str) else f"{end:.2f}" for end in ends]
        fits = phase["total"] is not None and phase["spare"] >= 0
        table.add_row(phase["stage"], phase["step"], *cells, style="" if fits else "red")
    return table


def _step_table(report: Mapping[str, Any], unit: float) -> Table:
    columns = {"argument": "arguments", "output": "output", "alias": "aliased", "temp": "temporary", "peak": "peak"}
    table = _table(("step", "rows x tokens"), (*columns.values(), "compile"))
    for name, step in report["steps"].items():
        rows, prompt, response, _ = step["bucket"]
        cells = [f"{step[part] / unit:.2f}" for part in columns] if "peak" in step else ["refused"]
        seconds = [f"{step['seconds']:.0f} s"] if "seconds" in step else []
        tokens = f"{prompt}+{response}" if response else f"{prompt}"
        table.add_row(name, f"{rows} x {tokens}" if rows else "", *cells, *seconds)
    return table


def _traffic_table(report: Mapping[str, Any]) -> Table:
    table = _table(("step", "", "all of it", "by kind"), ())
    for name, step in report["steps"].items():
        for key, when in (("collectives", ""), ("per_turn", "per decoded token")):
            if found := step.get(key):
                kinds = sorted(found.items(), key=lambda item: -item[1]["bytes"])
                listed = ", ".join(f"{what['count']} {kind} {text_of(what['bytes'])}" for kind, what in kinds)
                table.add_row(name, when, text_of(sum(what["bytes"] for _, what in kinds)), listed)
    if not table.row_count:
        table.add_row("nothing moves")
    return table
