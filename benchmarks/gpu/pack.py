"""Pack a kit for a GPU machine without a network: ``python -m benchmarks.gpu.pack has=FILE``.

Options: has (a text file of the packages that are installed on that machine, one name per line, as
``pip list --format freeze`` prints them), python (its Python version, 3.12), folder (gpu_kit). The
command downloads wheels of the other packages that this project needs, for Linux on x86-64. It also
writes the Push-T demonstrations without images. The folder then contains

    wheels/       packages to install without dependencies
    data/         the folder for $EBT_POLICY_DATA
    run.sh        installs and measures: ``bash gpu_kit/run.sh minutes=9``, from the repository

Import the results with ``python -m benchmarks.gpu.fetch from=FOLDER``.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks.command_line import parse_options
from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.push_t import load_push_t
from ebt_policy.io.atomic_write import atomic_write

LARGEST_MB = 60
NOT_NEEDED = {
    "av",  # videos
    "opencv-python",  # opencv-python-headless has the same module.
    "httpx2", "httpcore2", "truststore",  # downloads
    "importlib-metadata", "pre-commit",
}  # fmt: skip
BESIDES = {"jvp-flash-attention": "0.14.0"}  # Only the section text needs it.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)] + [
    "manylinux2014_x86_64", "manylinux1_x86_64",
]  # fmt: skip
RUN = """\
#!/usr/bin/env bash
# Install the missing packages outside the repository, and measure. Run this from the repository.
set -euo pipefail
kit=$(cd "$(dirname "$0")" && pwd)
site=${KIT_SITE:-/tmp/ebt_policy_site}
python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade \\
    --target "$site" "$kit"/wheels/*.whl
export PYTHONPATH="$site:$PWD" EBT_POLICY_DATA="$kit/data"
python3 -m benchmarks.gpu "$@"
"""


def required_packages() -> dict[str, str]:
    """Return the packages that ``ebt_policy`` and its extra ``vision`` need: name -> version."""
    versions: dict[str, str] = {}
    pending = [("ebt_policy", "vision")]
    while pending:
        name, extra = pending.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:  # It is only needed on another platform.
            continue
        if canonical(name) in versions:
            continue
        versions[canonical(name)] = package.version
        for text in package.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                pending.append((requirement.name, ""))
    del versions["ebt-policy"]
    return versions


def canonical(name: str) -> str:
    """Return the normalized name of a package, by which an index compares names."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def installed(file: Path) -> set[str]:
    """Return the normalized names in a list of packages.

    Raises:
        SystemExit: the file cannot be read, or is empty.
    """
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        sys.exit(f"error: has={file} cannot be read ({error.strerror}).")
    names = {canonical(re.split(r"[=\s@]", line.strip())[0]) for line in lines if line.strip()}
    if not names:
        sys.exit(f"error: has={file} lists no package.")
    return names


def download(name: str, version: str, python: str, folder: Path) -> None:
    """Download one wheel into a folder, or build it if the index has only its source."""
    requirement = f"{name}=={version}"
    platforms = [argument for name in PLATFORMS for argument in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = subprocess.run(
        [*pip, "download", "--no-deps", "--only-binary=:all:", "--python-version", python,
         "--implementation", "cp", *platforms, "--dest", str(folder), requirement],
        capture_output=True, text=True,
    )  # fmt: skip
    if wheel.returncode:
        built = subprocess.run(
            [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), requirement],
            capture_output=True, text=True,
        )  # fmt: skip
        if built.returncode:
            output = f"{wheel.stderr}{built.stderr}"
            sys.exit(f"error: {requirement} could be neither downloaded nor built:\n{output}")


def main() -> None:
    options = parse_options(has="", python="3.12", folder="gpu_kit")
    if not options.has:
        sys.exit("error: missing required option has=FILE, a list of the GPU machine's packages.")
    if platform.machine() != "x86_64":
        sys.exit("error: wheels that are built on this machine would not run on x86-64.")
    present = installed(Path(options.has)) | NOT_NEEDED
    missing = {
        name: version
        for name, version in sorted({**required_packages(), **BESIDES}.items())
        if name not in present and not name.startswith("nvidia")
    }
    folder = Path(options.folder)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    for name, version in missing.items():
        print(f"{name} {version}", flush=True)
        download(name, version, options.python, folder / "wheels")
    episodes, note = load_push_t()
    target = folder / "data" / "pusht" / "pusht_cchi_v7_replay.zarr.zip"
    target.parent.mkdir(parents=True)
    write_episodes(target, episodes)
    print(note)
    atomic_write(folder / "run.sh", RUN)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    print(f"{folder}: {size:.1f} MB")
    if size > LARGEST_MB:
        sys.exit(f"error: {folder} has {size:.1f} MB, and at most {LARGEST_MB} MB are allowed.")


if __name__ == "__main__":
    main()
