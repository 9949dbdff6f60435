"""What a wheel holds is all that a command needs, in any folder."""

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from reft_jax.config import load_config, to_dict

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.*") if path.is_file())


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with what a wheel of this checkout installs."""
    pytest.importorskip("setuptools", reason="builds the wheel")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("reft_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(out), str(source)], check=True)
    (wheel,) = out.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(out / "site")
    return out / "site"


@pytest.mark.ci
def test_a_wheel_works_in_any_folder(site, tmp_path):
    held = [path for path in (site / "reft_jax/configs").rglob("*.*") if path.is_file()]
    assert sorted(str(path.relative_to(site / "reft_jax/configs")) for path in held) == CONFIGS
    assets = [path.name for path in (ROOT / "reft_jax/report/assets").iterdir()]
    assert sorted(path.name for path in (site / "reft_jax/report/assets").iterdir()) == sorted(assets)
    licences = {path.name for path in next(site.glob("*.dist-info")).rglob("*LICENSE")}
    assert licences == {"LICENSE", "uPlot-LICENSE"}
    assert "reft = reft_jax.cli:main" in next(site.glob("*.dist-info/entry_points.txt")).read_text()

    environment = {**os.environ, "PYTHONPATH": str(site)}
    python = lambda *line: subprocess.run(
        [sys.executable, *line], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    found = python("-c", "import reft_jax; print(reft_jax.__file__)").stdout
    assert found.startswith(str(site)), found
    for names in (["quickstart"], ["configs/paper/gsm8k_pcot_codellama_7b.yaml", "overlays/grpo"]):
        files = [word for name in names for word in ("--config", name)]
        printed = python("-m", "reft_jax.train", *files, "--run_dir", "/r", "--print_config")
        assert printed.returncode == 0, printed.stderr
        (tmp_path / "printed.yaml").write_text(printed.stdout)
        given = [word for name in names for word in ("--config", str(ROOT / "configs" / name.removeprefix("configs/")))]
        given = [word if word == "--config" or word.endswith(".yaml") else f"{word}.yaml" for word in given]
        assert to_dict(load_config(["--config", str(tmp_path / "printed.yaml")])) == to_dict(
            load_config([*given, "--run_dir", "/r"])
        )
        (tmp_path / "printed.yaml").unlink()
    script = "import sys; sys.argv[0] = '/bin/reft'; from reft_jax.cli import main; sys.exit(main())"
    done = python("-c", script, "init", "mine")
    assert done.returncode == 0, done.stderr
    done = python("-c", script, "train", "--config", "mine/config.yaml", "--print_config")
    assert yaml.safe_load(done.stdout)["data"]["train"]["kind"] == "jsonl", done.stderr
    shapes = python("-c", "from reft_jax.preflight.__main__ import SHAPES; print(len(list(SHAPES.glob('*/*'))))").stdout
    assert int(shapes) == len(list((ROOT / "configs/models").glob("*/*")))


def test_what_modules_import_is_installed_with_the_package():
    """Imports at the top of a module, against what the dependencies ask for without extras, and what those ask for."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    installed, todo = set[str](), [Requirement(text) for text in wanted]
    while todo:
        need = todo.pop()
        if need.name.lower() not in installed and (need.marker is None or need.marker.evaluate({"extra": ""})):
            installed.add(need.name.lower())
            todo += map(Requirement, importlib.metadata.requires(need.name) or [])
    owners = importlib.metadata.packages_distributions()
    for path in (ROOT / "reft_jax").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            )
            for name in {name.partition(".")[0] for name in names} - {"", "reft_jax"} - sys.stdlib_module_names:
                assert {owner.lower() for owner in owners[name]} & installed, f"{path}: {name}"
