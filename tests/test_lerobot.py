"""Data sets are exchanged with the real LeRobot, which has a virtual environment of its own.

``make test-lerobot`` creates the environment and runs these tests. Without it they are skipped.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from lerobot_files import frames_of, rows_of

from ebt_policy.data.convert import convert
from ebt_policy.data.dataset import Role, open_dataset
from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import Episodes

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(os.environ.get("LEROBOT_VENV", ROOT / ".venv-lerobot")) / "bin"
SCRIPTS = Path(__file__).parent / "lerobot_scripts"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BIN / "lerobot-train").exists(), reason="run make test-lerobot"),
]
LENGTHS = (40, 33)


def call(*command: str | Path, cwd: Path) -> str:
    """Run a program of LeRobot's environment, offline, and return what it printed."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hf"), "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)
    result = subprocess.run(
        [str(BIN / command[0]), *map(str, command[1:])],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.fixture
def converted(tmp_path) -> Path:
    """Write an episode store and convert it to LeRobot 3.0."""
    rows = rows_of(LENGTHS)
    arrays = {
        "state": np.concatenate([row["observation.state"] for row in rows]),
        "action": np.concatenate([row["action"] for row in rows]),
        "top": np.concatenate([frames_of(i, n).repeat(2, 1).repeat(2, 2)
                               for i, n in enumerate(LENGTHS)]),
    }  # fmt: skip
    attrs = {"rate_hz": 10, "instructions": ["Push.", "Pull."]}
    write_episodes(tmp_path / "store", Episodes(arrays, np.cumsum(LENGTHS), attrs))
    convert(tmp_path / "store", tmp_path / "converted").close()
    return tmp_path / "converted"


def test_a_data_set_of_lerobot_is_read(tmp_path):
    call("python", SCRIPTS / "write_dataset.py", tmp_path / "set", "rows.npz", cwd=tmp_path)
    with np.load(tmp_path / "rows.npz") as rows, open_dataset(tmp_path / "set") as dataset:
        assert (dataset.fps, dataset.lengths.tolist()) == (10, [15, 9])
        for name in ("observation.state", "action"):
            read = np.concatenate([dataset.read(i, [name])[name] for i in range(2)])
            np.testing.assert_array_equal(read, rows[name])
        (camera,) = (n for n, f in dataset.features.items() if f.role is Role.IMAGE)
        means = dataset.frames(1, camera, range(9)).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(means, 40 + 10 * np.arange(9), atol=4)
        assert [dataset.instruction(i) for i in range(2)] == ["Task 0.", "Task 1."]


def test_lerobot_reads_a_converted_data_set(converted, tmp_path):
    call("python", SCRIPTS / "read_dataset.py", converted, "rows.npz", cwd=tmp_path)
    with np.load(tmp_path / "rows.npz") as read, open_dataset(tmp_path / "store") as store:
        assert read["episodes"] == 2
        assert read["instructions"].tolist() == ["Push."] * LENGTHS[0] + ["Pull."] * LENGTHS[1]
        for name, key in (("action", "action"), ("observation.state", "state")):
            rows = np.concatenate([store.read(i, [key])[key] for i in range(2)])
            np.testing.assert_array_equal(read[name], rows)
        np.testing.assert_allclose(read["action_mean"], read["action"].mean(0), atol=1e-5)
        frames = np.concatenate([store.frames(i, "top", range(n)) for i, n in enumerate(LENGTHS)])
        shown = read["observation.images.top"].transpose(0, 2, 3, 1) * 255  # (N, H, W, 3)
        assert np.abs(shown - frames).mean() < 4
        np.testing.assert_array_equal(read["frame_index"], np.concatenate([*map(range, LENGTHS)]))


def test_lerobot_trains_on_a_converted_data_set(converted, tmp_path):
    printed = call(
        "lerobot-train", "--dataset.repo_id=local/converted", f"--dataset.root={converted}",
        "--policy.type=act", "--policy.device=cpu", "--policy.push_to_hub=false",
        "--policy.pretrained_backbone_weights=null", "--policy.dim_model=32",
        "--policy.n_heads=2", "--policy.dim_feedforward=32", "--policy.n_encoder_layers=1",
        "--policy.n_vae_encoder_layers=1", "--policy.chunk_size=8", "--policy.n_action_steps=8",
        "--steps=20", "--batch_size=2", "--num_workers=0", "--log_freq=10", "--save_freq=20",
        "--wandb.enable=false", "--output_dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert "step:20" in printed
    assert list((tmp_path / "run").rglob("model.safetensors"))
