"""Which folders are taken for a run's checkpoint: those that are not say what they are, and what is one."""

import pytest

from reft_jax.records.checkpoint import PARTS, part_name, run_of

MODELS = ("warmup", "sft", "rl_best")


@pytest.fixture
def run_dir(tmp_path):
    """A run's folder as far as names go, with parts, chosen models, a resume point and a link."""
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("warmup", "sft", "rl_best_step_9", "resume/9/state"):
        (checkpoints / name).mkdir(parents=True)
    for part in PARTS[:3]:
        (checkpoints / part_name("warmup", part)).mkdir()
        (checkpoints / part_name("rl_best_step_9", part)).mkdir()
    (checkpoints / "rl_best").symlink_to("rl_best_step_9")
    (tmp_path / "run" / "config.yaml").touch()
    return tmp_path / "run"


@pytest.mark.parametrize("name", [*MODELS, "rl_best_step_9"])
def test_a_model_of_a_run_is_one(run_dir, name, monkeypatch):
    assert run_of(run_dir / "checkpoints" / name) == run_dir
    monkeypatch.chdir(run_dir / "checkpoints")
    assert run_of((run_dir / "checkpoints" / name).relative_to(run_dir / "checkpoints")) == run_dir


@pytest.mark.parametrize("reward_model", [False, True])
@pytest.mark.parametrize("name", ["resume", "resume/9", "resume/9/state", "resume/none"])
def test_a_resume_point_says_which_folders_are_models(run_dir, name, reward_model):
    with pytest.raises(ValueError, match="resume points are no models") as error:
        run_of(run_dir / "checkpoints" / name, reward_model=reward_model)
    assert str(error.value).endswith(f"models in {run_dir / 'checkpoints'}: rl_best, sft, warmup")


def test_a_run_without_models_has_none_yet(tmp_path):
    (tmp_path / "checkpoints" / "resume" / "3").mkdir(parents=True)
    with pytest.raises(ValueError, match="none yet"):
        run_of(tmp_path / "checkpoints" / "resume" / "3")


@pytest.mark.parametrize("place", ["elsewhere", "run/model", "run/checkpoints/exported"])
def test_a_model_of_hugging_face_says_how_it_is_asked(run_dir, place):
    folder = run_dir.parent / place
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    with pytest.raises(ValueError, match=rf"{place} is a model in Hugging Face.*model\.path.*--config"):
        run_of(folder)


@pytest.mark.parametrize("name", ["checkpoints", "."])
def test_a_folder_too_high_says_which_folders_are_models(run_dir, name):
    with pytest.raises(ValueError, match=r"is a folder of models, or a run's: name one; models in .*checkpoints: "):
        run_of(run_dir / name)


@pytest.mark.parametrize("name", ["checkpoints/none", "none"])
def test_another_folder_says_what_is_wanted(run_dir, name):
    with pytest.raises(FileNotFoundError, match=r"give a folder of RUN_DIR/checkpoints"):
        run_of(run_dir / name)


def test_a_reward_model_is_not_a_policy(run_dir):
    (run_dir / "checkpoints" / "sft_class_head").mkdir()
    assert run_of(run_dir / "checkpoints" / "sft", reward_model=True) == run_dir
    with pytest.raises(ValueError, match="is a reward model"):
        run_of(run_dir / "checkpoints" / "sft")
    with pytest.raises(ValueError, match="is no reward model"):
        run_of(run_dir / "checkpoints" / "warmup", reward_model=True)
