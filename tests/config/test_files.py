"""The configs of the package are found by name, from anywhere; a file of the user's own goes first."""

import re
from pathlib import Path

import pytest
import yaml

from reft_jax.config import load_config
from reft_jax.config.files import SHIPPED, find, not_found, parse_yaml

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


def test_a_key_stands_once_in_a_mapping_whatever_is_merged_into_it():
    merged = "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\nd: {<<: [*a, *b]}"
    assert parse_yaml(merged) == yaml.safe_load(merged)
    for text in ("a: 1\na: 2", "{a: 1, a: 2}", "- {b: {a: 1, 'a': 2}}"):
        with pytest.raises(yaml.YAMLError, match="key 'a' is in line 1 already"):
            parse_yaml(text)


def test_yaml_is_read_in_one_place():
    """So that no reader lets the last of two equal keys win."""
    reading = re.compile(r"yaml\.(?:safe_)?load|import .*SafeLoader")
    found = [path.name for path in sorted((ROOT / "reft_jax").rglob("*.py")) if reading.search(path.read_text())]
    assert found == ["files.py"]


def test_settings_in_place_of_a_file_may_be_longer_than_a_name(tmp_path):
    settings = f"{{run_dir: {tmp_path}, seed: 5, reward: {{functions: {{{'f' * 300}.g: 1.0}}}}}}"
    assert load_config(["--config", "quickstart", "--config", settings]).seed == 5
