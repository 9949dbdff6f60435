"""The configs of the package are found by name, from anywhere; a file of the user's own goes first."""

from pathlib import Path

import pytest

from reft_jax.config import load_config
from reft_jax.config.files import SHIPPED, find, not_found

ROOT = Path(__file__).parents[2]


def test_the_package_has_the_configs_of_the_repository():
    names = lambda folder: {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names(SHIPPED) == names(ROOT / "configs")


@pytest.mark.parametrize("form", ["{}", "{}.yaml", "configs/{}", "configs/{}.yaml"])
@pytest.mark.parametrize("name", ["quickstart", "overlays/one_gpu", "paper/gsm8k_pcot_galactica_6.7b"])
def test_a_config_of_the_package_is_found_by_name(form, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    found = find(form.format(name))
    assert found is not None
    assert found.read_text() == (ROOT / "configs" / f"{name}.yaml").read_text()


def test_a_file_of_the_users_own_goes_before_one_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("seed: 5")
    assert find("quickstart") == Path("quickstart")
    (tmp_path / "quickstart").unlink()
    assert load_config(["--config", "quickstart", "--run_dir=r"]).seed == 1


def test_a_file_may_be_made_of_configs_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("config: [quickstart, overlays/no_kl]\nseed: 8\n")
    config = load_config(["--config", "mine.yaml"])
    assert (config.seed, config.rl.kl_coef, config.rl.rollout_batch_size) == (8, 0.0, 256)
    assert config.run_dir == str(tmp_path / "runs/quickstart"), "from where the command runs"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("quickstrat", "did you mean quickstart?"),
        ("one_gpu.yaml", "did you mean overlays/one_gpu?"),
        ("zzz", "there are countdown_qwen2.5_0.5b, quickstart, svamp_pcot_smollm2_135m"),
    ],
)
def test_a_name_that_leads_nowhere_is_told_which_is_meant(name, meant, capsys):
    assert find(name) is None
    assert meant in not_found(name)
    with pytest.raises(SystemExit):
        load_config(["--config", name])
    told = capsys.readouterr().err
    assert meant in told
    assert repr(name) in told
