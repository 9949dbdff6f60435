"""`benchmarks.real` and `benchmarks.dip`: their data by hand-made cases, their pages of made-up runs, and tiny runs."""

import ast
import json
import random
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from benchmarks import dip, real, runs
from benchmarks import word_problems as wp
from reft_jax.data.readers import question_key
from reft_jax.data.tokenizers import load_tokenizer
from reft_jax.problem import Problem
from reft_jax.reward.arithmetic import evaluate
from tests.runs import end, start

SVAMP_ROW = 'def solution():\n    """{question}"""\n    a = {a}\n    b = {b}\n    result = a + b\n    return result'

NINTH = "( 8 + 1 ) / 3"


def made_data(folder: Path, count: int = 60) -> Path:
    """Files as they are downloaded, made up: SVAMP's programs and test set, and GSM8K's solutions."""
    asked = [(f"Ann has {i + 20} red pens and finds {i % 7 + 2} blue ones. How many is that?", i) for i in range(count)]
    rows = [
        {
            "item_id": f"svamp_{i}",
            "question": question,
            "answer_cot": SVAMP_ROW.format(question=question, a=i + 20, b=i % 7 + 2),
            "answer_value": str(i + 22 + i % 7),
        }
        for question, i in asked
    ]
    tests = [{"item_id": f"svamp_{9000 + i}", "question": f"{q} Tell me.", "answer_value": "1.0"} for q, i in asked[:9]]
    tests.append({"item_id": "svamp_9999", "question": rows[0]["question"].upper(), "answer_value": "22"})
    notes = [
        {
            "question": f"Tom buys {n + 3} packs of {n + 14} nails. How many nails are half of them?",
            "answer": f"<<{n + 3}*{n + 14}={(n + 3) * (n + 14)}>>\nHalf is <<{(n + 3) * (n + 14)}/2="
            f"{(n + 3) * (n + 14) / 2:g}>>\n#### {(n + 3) * (n + 14) / 2:g}",
        }
        for n in range(20)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "svamp_python_sdp.json").write_text(json.dumps(rows))
    (folder / "svamp_test_set.json").write_text(json.dumps(tests))
    (folder / "train.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    return folder


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        ("He\u2019s got 1,250 pens.", "he ' s got 1250 pens ."),
        ("It costs $5.70, or $.50 each", "it costs $ 5.7 , or $ 0.5 each"),
        ("Add 5.0 and 07", "add 5 and 7"),
        ("20% of 3,4", "20 % of 3 , 4"),
    ],
)
def test_a_question_is_words_numbers_and_signs(question, wanted):
    assert wp.normalise(question) == wanted
    assert wp.normalise(wanted) == wanted


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        ("def solution():\n    '''q'''\n    a = 5\n    b = a - 2\n    b = b * a\n    return b", "( 5 - 2 ) * 5"),
        (
            "def solution():\n    a = 8.0\n    a += 1\n    c = int(a / 3)\n    return c + c",
            "( 8 + 1 ) / 3 + ( 8 + 1 ) / 3",
        ),
        ("def solution():\n    return 9 - (4 - 1)", "9 - ( 4 - 1 )"),
    ],
)
def test_a_program_is_written_as_one_expression(program, wanted):
    tree = wp.from_program(program)
    assert wp.written(tree) == wanted
    space: dict = {}
    exec(program, space)
    assert wp.value(tree) == space["solution"]()


@pytest.mark.parametrize(
    "body",
    [
        "for i in range(3):\n        pass",
        "return max(1, 2)",
        "return -1",
        "return x",
        "a = 'b'\n    return a",
        "return True",
        "pass",
    ],
)
def test_other_programs_are_refused(body):
    with pytest.raises(ValueError):
        wp.from_program(f"def solution():\n    {body}")


@pytest.mark.parametrize(
    ("question", "solution", "wanted"),
    [
        ("sold 48 , then half", "<<48/2=24>>24 and <<48+24=72>>72", "48 + 48 / 2"),
        ("3 bags of 12 , 5 lost", "<<3*12=36>> <<+36-5=31>>", "3 * 12 - 5"),
        ("a box of 7.5 , 2 boxes a day", "<<2*7.50=15>> a week <<15*7=105>>", "2 * 7.5 * 7"),
        ("1500 and 2", "<<1,500/2=750>>", "1500 / 2"),
        ("20 % of 80", "<<80*.2=16>>", "80 * ( 20 / 100 )"),
    ],
)
def test_notes_are_put_together(question, solution, wanted):
    assert wp.written(wp.from_notes(question, solution)) == wanted


@pytest.mark.parametrize(
    ("question", "solution", "why"),
    [
        ("no numbers", "it is 5", "no notes"),
        ("30 % of 80", "<<80*.2=16>>", "nowhere"),
        ("6 , 2 and 3", "<<2*3=6>> <<6+6=12>>", "the question's or a result"),
        ("8 and 4", "<<8/4=2>> <<4/2=2>> <<2+2=4>>", "same number"),
        ("4 and 2", "<<4x2=8>>", "no arithmetic"),
        ("4 and 2", "<<-4+2=-2>>", "a sign"),
    ],
)
def test_notes_whose_numbers_are_not_plain_are_refused(question, solution, why):
    with pytest.raises(ValueError, match=why):
        wp.from_notes(question, solution)


@pytest.mark.parametrize(
    ("question", "expression"),
    [
        ("sara has 41 pens , gives 5 away , and each box holds 3", "( 41 - 5 ) / 3"),
        ("a 2.25 pie and 100 others for 1 each", "2.25 * 2 + 100 * 1"),
        ("it rained 7 days , 12 mm each , as in 7 others", "7 * 12 - 7"),
    ],
)
def test_other_numbers_stand_in_question_and_program_alike(question, expression):
    draw, seen = random.Random(0), set()
    tree = ast.parse(expression, mode="eval").body
    numbers = re.compile(r"\d+(?:\.\d+)?")
    before = numbers.findall(question)
    for _ in range(300):
        try:
            asked, changed = wp.with_other_numbers(question, tree, draw)
        except ValueError:
            continue
        after = numbers.findall(asked)
        assert numbers.sub("N", asked) == numbers.sub("N", question), "nothing else changes"
        assert [len(x) for x in after] == [len(x) for x in before], "as many digits"
        by_hand = numbers.sub(lambda found, new=dict(zip(before, after)): new.get(found[0], found[0]), expression)
        assert wp.value(changed) == pytest.approx(eval(by_hand))
        assert eval(by_hand) > 0
        seen.add(asked)
    assert len(seen) > 50


def test_the_answer_of_a_varied_question_is_what_its_program_gives():
    """By the package's own judge."""
    first = Problem("a", "sara has 41 pens and gives 5 away", "36", cot=f"{wp.HEADER} 41 - 5")
    other = Problem("b", "9 bags hold 4 pens", "36", cot=f"{wp.HEADER} 9 / 4")
    made = wp.varied([first, other], 20, seed=1)
    assert len({p.id for p in made}) == len(made) > 30
    for problem in made:
        outcome, value, _ = evaluate(problem.cot, "lenient")
        assert outcome == "ok"
        assert float(value) == pytest.approx(float(problem.answer), abs=1e-5)
    assert made == wp.varied([first, other], 20, seed=1)


def test_what_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(wp, "TRAIN", 30)
    prepared = wp.prepare(made_data(tmp_path / "files"), tmp_path / "data")
    read = lambda name: [json.loads(line) for line in (tmp_path / "data" / f"{name}.jsonl").read_text().splitlines()]
    dev, test = read("dev"), read("test")
    held = [row for row in test if not row["id"].startswith("official_")]
    keys = [{question_key(row["question"]) for row in rows} for rows in (dev, test)]
    keys.append({question_key(p.question) for p in prepared.train})
    assert sum(map(len, keys)) == len(set.union(*keys)), "no question stands in two of them, the official test included"
    assert prepared.facts["held"] == len(held) > 0
    assert prepared.facts["official"] == 10
    assert len(prepared.train) == 30
    assert dev

    annotated = [json.loads(line) for line in prepared.annotate(3, 8).read_text().splitlines()]
    others = [json.loads(line) for line in prepared.annotate(4, 8).read_text().splitlines()]
    chosen = [{row["id"] for row in rows if "cot" in row} for rows in (annotated, others)]
    assert [len(rows) for rows in (annotated, others)] == [30, 30]
    assert [len(ids) for ids in chosen] == [8, 8]
    assert chosen[0] != chosen[1]

    tokenizer = load_tokenizer(str(prepared.tokenizer), "main")
    text = wp.prompt_of("ann has 1475 pens .") + f"{wp.HEADER} 1475 - 75"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer(wp.HEADER)["input_ids"] == [tokenizer.convert_tokens_to_ids(wp.HEADER)]
    assert [tokenizer.decode([i]) for i in tokenizer(" 1475")["input_ids"]] == [" 14", "75"]


def test_files_that_are_not_there_are_named_with_where_they_are_from(tmp_path):
    (tmp_path / "svamp_python_sdp.json").write_text("[]")
    with pytest.raises(FileNotFoundError) as refused:
        wp.find_files(tmp_path)
    assert "svamp_test_set.json: the folder data/ of github.com/lqtrung1998/mwp_ReFT" in str(refused.value)
    assert "train.jsonl or" in str(refused.value)
    assert "hf download openai/gsm8k" in str(refused.value)
    assert "svamp_python_sdp" not in str(refused.value)


def test_the_dips_programs_have_no_docstring(tmp_path):
    dip.prepare(made_data(tmp_path / "files"), tmp_path / "data")
    rows = [json.loads(line) for line in (tmp_path / "data/train.jsonl").read_text().splitlines()]
    assert len(rows) == 60
    assert rows[0]["cot"] == "def solution():\n    a = 20\n    b = 2\n    result = a + b\n    return result"


def fake_run(folder: Path, models: dict[str, list[bool]]) -> None:
    """A finished run, of which test has three held-out questions and one official."""
    folder.mkdir(parents=True)
    names = ["a", "b", "c", "official_d"]
    rows = [
        {"split": "test", "model": model, "id": name, "outcome": "correct" if right else "wrong"}
        for model, answers in models.items()
        for name, right in zip(names, answers)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({model: {} for model in models}))
    steps = [{"stage": "rl", "reward/mean": 0.5, "reward/correct": 0.25 * n} for n in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))


def test_the_page_says_what_is_finished(tmp_path):
    (tmp_path / "data").mkdir()
    rows = [{"id": name} for name in ("a", "b", "c", "official_d")]
    (tmp_path / "data/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = dict.fromkeys(
        ("svamp_used", "train", "dev", "held", "pretrain", "pretrain_questions", "vocabulary", "official"), 7
    )
    arms = [runs.Arm("x", "arm x"), runs.Arm("y", "arm y")]
    study = real.Study(tmp_path, (1, 2), arms, real.CONFIG, 400, wp.Prepared(tmp_path / "data", [], facts))
    supervised = {"warmup": [False] * 4, "sft": [True, False, False, True], "sft_best": [True, False, False, False]}
    fake_run(tmp_path / "seed-1/sft", supervised)
    fake_run(tmp_path / "seed-1/x", {"rl_best": [False, True, True, True]})
    fake_run(tmp_path / "seed-2/sft", supervised)
    text = "\n".join(real.page(study, 2))
    assert "**Not finished**, and left out below: arm x, seed 2; arm y, seed 1; arm y, seed 2." in text
    assert "| arm x | 66.7 |  | **66.7** | +33.3 | +33.3 to +33.3 |" in text
    assert "| arm x | +2 -1, p 1 |  | +2 -1 |" in text
    assert "| arm x | 100.0 |  | **100.0** |" in text, "the official part"
    assert "| SFT continued, best on dev | 33.3 | 33.3 | **33.3** |  |  |" in text
    assert "| arm x | 25.0 | 50 |" in text, "right at first, and at the end"


def test_an_interval_of_seeds():
    """Student's t with 2 degrees of freedom has 95 % within 4.303 standard errors."""
    assert runs.mean_with_interval([1.0, 2.0, 3.0]) == f"+2.0 ({2 - 4.303 / 3**0.5:+.1f} to {2 + 4.303 / 3**0.5:+.1f})"
    assert runs.mean_with_interval([1.5]) == "+1.5"


TINY = {
    "model": {"embed_dim": 16, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 16, "rotary_dim": 16},
    "sft": {"schedule_epochs": 2, "warmup_epoch": 1, "stop_epoch": 2, "evaluate_every": 1, "save_every": 1},
    "rl": {"epochs": 1, "rollout_batch_size": 16, "minibatch_size": 8, "microbatch_size": 8, "evaluate_every": 2},
}


def tiny(config: Path, folder: Path) -> Path:
    """A benchmark's config with a model and sizes that take seconds."""
    settings = yaml.safe_load(config.read_text())
    settings["model"]["decoder"] |= TINY["model"]
    for stage in ("sft", "rl"):
        settings[stage] |= TINY[stage]
    if "pretrain" in settings:
        settings["pretrain"] |= {"epochs": 1}
    (folder / config.name).write_text(yaml.safe_dump(settings))
    return folder / config.name


@pytest.mark.long
@pytest.mark.compiles
@pytest.mark.parametrize(("module", "arms"), [(real, ("steady", "ppo")), (dip, ("recipe", "steady"))])
def test_a_command_makes_its_page_and_goes_on_where_it_stopped(module, arms, tmp_path):
    name = module.__name__.rpartition(".")[2]
    report = tmp_path / f"{name}.md"
    given = {"out": tmp_path / name, "data": made_data(tmp_path / "files"), "seeds": "[1]", "workers": 1}
    given |= {"config": tiny(module.CONFIG, tmp_path), "report": report}
    given |= {"annotated": 8} if module is real else {}
    run = lambda *names: end(start_process(module, {**given, "arms": json.dumps(names)}), 0, timeout=1500)

    run(arms[0])
    assert "Not finished" not in report.read_text()
    spent = lambda: {path.name: len(path.read_text().splitlines()) for path in tmp_path.rglob("*.costs.jsonl")}
    first = spent()
    said = run(*arms)
    assert spent() == {**first, f"{arms[1]}.costs.jsonl": 1}, "what is done is not done again"
    assert arms[1] in said
    labels = {arm.run: arm.label for arm in module.ARMS}
    assert all(f"| {labels[arm]} | " in report.read_text() for arm in arms)
    assert all(len(line) <= 120 for line in report.read_text().splitlines() if line[:1] not in "|!")


def start_process(module, given: dict) -> subprocess.Popen:
    arguments = [str(part) for key, value in given.items() for part in (f"--{key}", value)]
    return start(arguments, command=(module.__name__,))


def test_without_files_a_command_says_what_to_download(tmp_path):
    with pytest.raises(SystemExit, match="lacks files; download them there"):
        real.main(out=tmp_path / "out", data=tmp_path)
    with pytest.raises(SystemExit, match="svamp_python_sdp"):
        dip.main(out=tmp_path / "out", data=tmp_path)
    with pytest.raises(SystemExit, match="--arms names x; there are "):
        real.main(out=tmp_path / "out", data=tmp_path, arms=("x",))
