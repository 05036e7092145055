"""Data sets and policies in the real LeRobot, which has a virtual environment of its own.

``make test-lerobot`` creates the environment and runs these tests. Without it they are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import camera_policies
import numpy as np
import pytest
import torch
from lerobot_files import frames_of, rows_of
from safetensors import safe_open

from ebt_policy.data.convert import convert
from ebt_policy.data.dataset import Feature, Role, open_dataset
from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.data.formats.lerobot_writer import LeRobotWriter
from ebt_policy.policies import load_policy

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


# -- the plug-in: the policy type ebt ----------------------------------------------------------

SMALL = (
    "--policy.type=ebt", "--policy.size=4xs", "--policy.vision=small", "--policy.device=cpu",
    "--policy.push_to_hub=false", "--batch_size=4", "--num_workers=0", "--wandb.enable=false",
)  # fmt: skip
PUSH_T = {"observation.state": 2, "observation.environment_state": 16, "action": 2}


def train_plug_in(root: Path, run: str, *options: str, cwd: Path) -> Path:
    """Train the plug-in with LeRobot's program, and return the folder of its policy."""
    call(
        "lerobot-train", "--dataset.repo_id=local/set", f"--dataset.root={root}",
        f"--output_dir={run}", *SMALL, *options, cwd=cwd,
    )  # fmt: skip
    return cwd / run / "checkpoints" / "last" / "pretrained_model"


@pytest.fixture
def push_t_set(tmp_path) -> Path:
    """Write a LeRobot data set with the observations of LeRobot's Push-T."""
    rng, root = np.random.default_rng(0), tmp_path / "push_t"
    features = [
        Feature(name, "float32", (width,), Role.ACTION if name == "action" else Role.STATE)
        for name, width in PUSH_T.items()
    ]
    writer = LeRobotWriter(root, features, fps=10)
    for length in LENGTHS:
        path = 250 + rng.normal(0, 9, (length + 1, 2)).cumsum(axis=0)
        block = rng.uniform(100, 400, (length, 16))
        rows = dict(zip(PUSH_T, (path[:-1], block, path[1:]), strict=True))
        writer.add({name: values.astype("f4") for name, values in rows.items()}, {}, "Push.")
    writer.finish()
    writer.close()
    return root


def test_plug_in_trains_on_cameras_and_resumes(converted, tmp_path):
    options = ("--policy.resize_shape=[48,64]", "--policy.max_prefix_len=4")
    policy = train_plug_in(converted, "run", "--steps=3", "--save_freq=3", *options, cwd=tmp_path)
    assert call("python", SCRIPTS / "check_ebt.py", policy, cwd=tmp_path).endswith("checked\n")
    call(
        "lerobot-train", f"--config_path={policy / 'train_config.json'}", "--resume=true",
        "--steps=5", "--save_freq=5", cwd=tmp_path,
    )  # fmt: skip
    with safe_open(policy / "model.safetensors", "np") as weights:
        assert weights.get_tensor("averaged.n_averaged") == 5
        names = set(weights.keys())
    call(
        "lerobot-train", f"--policy.path={policy}", f"--dataset.root={converted}",
        "--dataset.repo_id=local/converted", "--output_dir=further", *SMALL[3:], "--steps=1",
        cwd=tmp_path,
    )  # fmt: skip
    further = tmp_path / "further" / "checkpoints" / "last" / "pretrained_model"
    with safe_open(further / "model.safetensors", "np") as weights:
        assert weights.get_tensor("averaged.n_averaged") == 1  # the average has started anew
    trained = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    averaged = {n.removeprefix("averaged.module.") for n in names if n.startswith("averaged.m")}
    assert trained == averaged != set()


def test_plug_in_plays_push_t_of_lerobot(push_t_set, tmp_path):
    policy = train_plug_in(push_t_set, "run", "--steps=2", "--save_freq=2", cwd=tmp_path)
    sections = json.loads((policy / "config.json").read_text())["sections"]
    assert sections["task"]["state_keys"] == list(PUSH_T)[:2]
    assert sections["shape"]["relative_to"] == [0, 1]  # the actions are targets of the agent
    call(
        "lerobot-eval", f"--policy.path={policy}", "--policy.device=cpu", "--env.type=pusht",
        "--env.obs_type=environment_state_agent_pos", "--env.episode_length=20",
        "--eval.n_episodes=2", "--eval.batch_size=2", "--eval.use_async_envs=false",
        "--policy.num_inference_steps=1", "--output_dir=eval", cwd=tmp_path,
    )  # fmt: skip
    result = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    assert result["overall"]["n_episodes"] == 2
    call("python", "-m", "lerobot_policy_ebt.convert", policy, "here", cwd=tmp_path)
    ours = load_policy(tmp_path / "here")
    assert ours.config["task"]["fps"] == 10
    assert ours.config["trained"] == {"library": "lerobot", "steps": 2}
    assert ours.predict_chunk({"obs": torch.rand(1, 2, 18)}).actions.shape == (1, 16, 2)


def test_checkpoint_is_converted_to_lerobot_and_back(tmp_path):
    convert_checkpoint = ("python", "-m", "lerobot_policy_ebt.convert")
    call(*convert_checkpoint, "pretrained:push_t", "there", cwd=tmp_path)
    call(*convert_checkpoint, "there", "back", cwd=tmp_path)
    before, after = load_policy("pretrained:push_t"), load_policy(tmp_path / "back")
    assert before.config == after.config and before.shape == after.shape
    assert before.inference == after.inference
    for name, weight in before.state_dict().items():
        assert torch.equal(weight, after.state_dict()[name]), name
    obs = before.normalizer.unnormalize("obs", torch.zeros(2, 2, 20))
    np.savez(tmp_path / "obs.npz", obs=obs)
    call("python", SCRIPTS / "predict_ebt.py", "there", "obs.npz", "chunk.npy", cwd=tmp_path)
    torch.manual_seed(0)
    expected = before.predict_chunk({"obs": obs}).actions[:, 1:]
    np.testing.assert_allclose(np.load(tmp_path / "chunk.npy"), expected, atol=0.01)  # px


def test_training_and_prediction_can_be_compiled(tmp_path):
    """LeRobot needs an older PyTorch than the other tests."""
    call("python", "-m", "lerobot_policy_ebt.convert", "pretrained:push_t", "there", cwd=tmp_path)
    script = (SCRIPTS / "compile_ebt.py", "pretrained:push_t", "there")
    assert "compiled\n" in call("python", *script, cwd=tmp_path)


def test_options_survive_the_conversion_and_folders_do_not(tmp_path):
    policy = camera_policies.build(
        "flow", "model.inference.steps=7", "model.inference.num_candidates=3", "vision=small",
        "task.path=/home/me/secret/demonstrations",
    )  # fmt: skip
    (source := tmp_path / "source").mkdir()
    policy.save(source)
    convert_checkpoint = ("python", "-m", "lerobot_policy_ebt.convert")
    call(*convert_checkpoint, source, "there", cwd=tmp_path)
    file = tmp_path / "there" / "config.json"
    assert "secret" not in file.read_text()
    config = json.loads(file.read_text())
    assert (config["vision"], config["resize_shape"]) == ("small", [96, 96])
    file.write_text(json.dumps(config | {"num_candidates": 5, "n_action_steps": 4}))
    call(*convert_checkpoint, "there", "back", cwd=tmp_path)
    after = load_policy(tmp_path / "back")
    assert (after.inference.steps, after.inference.num_candidates) == (7, 5)
    assert after.shape.n_action_steps == 4
    assert after.config["task"]["path"] == "demonstrations"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("other", "policy type act"),
        ("pretrained:unknown", "pretrained:push_t"),
        ("nothing", "no checkpoint at"),
    ],
)
def test_checkpoint_that_cannot_be_converted(source, error, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"type": "act"}')
    with pytest.raises(AssertionError, match=error):
        call("python", "-m", "lerobot_policy_ebt.convert", source, "there", cwd=tmp_path)
    assert not (tmp_path / "there").exists()
