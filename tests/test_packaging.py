"""The installed package: its content, and no name conflicts with the user's project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ebt_policy", "envs", "configs", "real_robot", "benchmarks", "tests")
FILES = ("pyproject.toml", "README.md", "LICENSE")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
# Names of our top-level folders and of packages within ebt_policy.
HOSTILE_PACKAGES = (
    *("envs", "configs", "real_robot", "benchmarks", "data", "energy", "evaluation", "image"),
    *("language", "models", "policies", "training", "video"),
)
# Entry -> arguments and expected output, which only our configuration or code contains.
ENTRIES = {
    "ebt_policy.train": (["--cfg", "job"], "train:\n  steps: null\n"),
    "ebt_policy.eval": (["--cfg", "job"], "seed: 100000\n"),
    "ebt_policy.generate": (["--cfg", "job"], "temperature: 0.8\n"),
    "ebt_policy.scaling": (["axis=sideways"], "error: axis"),
    "ebt_policy.record": (["task=lift", "--cfg", "job"], "  name: lift\n"),
    "ebt_policy.real_robot.run": (["robot=sim_push_t", "--cfg", "job"], "env_id: ebt_policy/"),
    "ebt_policy.convert": (["robot=ros2_push_t", "--cfg", "job"], "max_gap_s: 1.0\n"),
    "ebt_policy.real_robot.sim_node": (["robot=ros2_push_t", "--cfg", "job"], "ros2"),
}


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """Copy the checkout with its symbolic links, because builds write files into it."""
    folder = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "golden")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=ignore, symlinks=True)
    for file in FILES:
        shutil.copy(ROOT / file, folder)
    return folder


def build(source: Path, kind: str, output: Path) -> Path:
    """Build a distribution with setuptools, offline: kind is wheel, editable or sdist."""
    program = f"from setuptools import build_meta; build_meta.build_{kind}({str(output)!r})"
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (file,) = output.iterdir()
    return file


@pytest.fixture(scope="session")
def wheel(source, tmp_path_factory) -> Path:
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


def environment_of(wheel: Path, folder: Path) -> Path:
    """Create a virtual environment with a wheel, and return its Python.

    A path entry adds the dependencies from the environment of the tests. It does not run the
    ``.pth`` files there, so an editable installation of the checkout is not visible.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = folder / "lib" / version / "site-packages"
    command = [*PIP, "install", "--no-deps", "--target", str(site_packages), str(wheel)]
    subprocess.run(command, check=True, timeout=120)
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="session")
def pythons(source, wheel, tmp_path_factory) -> dict[str, Path]:
    """Return the Python of an environment with the wheel, and of an editable installation."""
    editable = build(source, "editable", tmp_path_factory.mktemp("editable"))
    return {
        kind: environment_of(file, tmp_path_factory.mktemp("environment") / kind)
        for kind, file in {"wheel": wheel, "editable": editable}.items()
    }


@pytest.fixture
def hostile(tmp_path) -> Path:
    """Write a user project with packages of conflicting names and its own configuration."""
    folder = tmp_path / "project"
    for name in HOSTILE_PACKAGES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("print('HOSTILE')\nMINE = True\n")
    for name in ("train", "eval", "generate", "record", "run", "bags"):
        (folder / "configs" / f"{name}.yaml").write_text("HOSTILE: true\n")
    (folder / "ebt_policy.yaml").write_text("HOSTILE: true\n")
    return folder


def run(python: Path | str, *arguments: str, cwd: Path, timeout: int = 180) -> str:
    """Run Python without the test's own paths; return stdout and stderr."""
    unset = ("PYTHONPATH", "PYTHONSAFEPATH")
    environment = {k: v for k, v in os.environ.items() if k not in unset} | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [str(python), *arguments], cwd=cwd, env=environment, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    return result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_entries_ignore_the_packages_of_the_working_directory(kind, entry, pythons, hostile):
    arguments, expected = ENTRIES[entry]
    output = run(pythons[kind], "-m", entry, *arguments, cwd=hostile)
    assert expected in output, output
    assert "HOSTILE" not in output and "Traceback" not in output, output


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_a_project_imports_its_own_packages(kind, pythons, hostile, source):
    program = "import ebt_policy.envs, ebt_policy.configs, ebt_policy.real_robot; "
    program += f"import {', '.join(HOSTILE_PACKAGES)}; "
    program += f"assert all(m.MINE for m in ({', '.join(HOSTILE_PACKAGES)})); "
    program += "print(ebt_policy.__file__)"
    output = run(pythons[kind], "-c", program, cwd=hostile)
    assert output.count("HOSTILE") == len(HOSTILE_PACKAGES), output
    installed = Path(output.splitlines()[-1])
    assert installed.is_relative_to(source) == (kind == "editable")
    # If the project has no package of that name, the import fails instead of finding ours.
    for name in ("envs", "configs", "real_robot", "benchmarks", "tests"):
        output = run(pythons[kind], "-c", f"import {name}", cwd=hostile.parent)
        assert f"No module named '{name}'" in output


@pytest.mark.slow
def test_the_wheel_trains_with_an_environment_of_the_user(pythons, wheel, hostile):
    """The wheel contains configurations, demonstrations and the template of the report."""
    (hostile / "my_envs.py").write_text(
        "import gymnasium\n"
        "from ebt_policy.envs.push_t_env import PushTEnv\n"
        "class MyPushT(PushTEnv):\n"
        "    def step(self, action):\n"
        "        return *super().step(action)[:1], 0.125, *super().step(action)[2:]\n"
        "gymnasium.register('Mine-v0', MyPushT)\n"
    )
    arguments = ["train.steps=3", "train.minutes=null", "train.batch_size=8", "device=cpu"]
    arguments += ["train.compile=false", "task.demos=expert", "task.env.max_steps=10"]
    arguments += ["evaluation.episodes=1", "evaluation.videos=0", "evaluation.workers=1"]
    arguments += ["task.env.env_id=my_envs:Mine-v0"]
    before = set(os.listdir(hostile))
    output = run(pythons["wheel"], "-m", "ebt_policy.train", *arguments, cwd=hostile)
    assert "--module my_envs" in output and set(os.listdir(hostile)) == before
    arguments = ["--module", "my_envs", *arguments]
    output = run(pythons["wheel"], "-m", "ebt_policy.train", *arguments, cwd=hostile)
    assert "expert" in output and "HOSTILE" not in output and "Traceback" not in output, output
    assert {"runs"} <= set(os.listdir(hostile)) - before <= {"runs", "__pycache__"}
    results = hostile / "runs" / "push_t" / "ebt-xs-seed0" / "evaluation"
    assert (results / "report.html").is_file()
    (entry,) = json.loads((results / "summary.json").read_text())["entries"]
    assert entry["version"] in wheel.name
    assert entry["score"]["mean"] == 0.125  # the reward of the user's environment


def test_the_robot_runs_from_the_root_of_a_checkout():
    arguments = ["-m", "real_robot.run", "robot=sim_push_t", "--cfg", "job"]
    output = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert "env_id: ebt_policy/" in output.stdout, output.stderr


@pytest.mark.slow
def test_wheel_contains_only_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert "ebt_policy" in tops and len(tops) == 2  # the package and its metadata
    expected = {
        f"ebt_policy/{path.relative_to(ROOT)}"
        for folder in ("configs", "envs", "real_robot")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml")
    }
    for pattern in ("**/*.py", "**/*.j2", "**/*.zip", "py.typed", "pretrained/*/*"):
        expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "ebt_policy").glob(pattern)}
    assert any(name.endswith(".zip") for name in expected)
    assert {name for name in names if ".dist-info/" not in name} == expected


@pytest.mark.slow
def test_wheel_of_the_sdist_equals_the_wheel(source, wheel, tmp_path):
    for folder in ("sdist", "unpacked", "wheel"):
        (tmp_path / folder).mkdir()
    with tarfile.open(build(source, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    rebuilt = build(unpacked, "wheel", tmp_path / "wheel")
    assert set(zipfile.ZipFile(rebuilt).namelist()) == set(zipfile.ZipFile(wheel).namelist())
