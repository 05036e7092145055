"""Rollouts in worker processes: determinism, recorded chunks, scores, videos and errors."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch

from ebt_policy.envs.env_spec import EnvSpec
from ebt_policy.envs.perturbations import Perturbation
from ebt_policy.envs.rollout import RolloutPool, rollout

SHORT = EnvSpec("ebt_policy/PushT-v0", max_steps=20, n_obs_steps=2, n_action_steps=8)
SEEDS = [100_003, 100_000, 7, 100_001, 100_002]

# This environment counts its steps, ends after `seed` steps and fails as configured.
COUNTING = """
import os
import gymnasium
import numpy as np

class Counting(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}
    observation_space = gymnasium.spaces.Box(-1e6, 1e6, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1e6, 1e6, (1,), np.float32)

    def __init__(self, render_mode=None, raise_at=None, exit_at=None):
        self.render_mode, self.raise_at, self.exit_at = render_mode, raise_at, exit_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.end = 0, seed
        return self._obs(), {"state": np.array([self.t])}

    def _obs(self):
        return np.array([self.t], dtype=np.float32)

    def step(self, action):
        self.t += 1
        if self.t == self.raise_at:
            raise ZeroDivisionError("the simulator blew up")
        if self.t == self.exit_at:
            os._exit(3)
        success = self.t == 3
        reward = 0.5 if self.t == 2 else 0.1
        info = {"state": np.array([self.t]), "is_success": success}
        return self._obs(), reward, self.t >= self.end, False, info

    def render(self):
        return np.full((33, 31, 3), self.t, dtype=np.uint8)

gymnasium.register("Counting-v0", Counting)
"""


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """Return a function that makes EnvSpecs of an environment that counts its steps."""
    (tmp_path / "counting_env.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(tmp_path)

    def make(max_steps=30, n_obs_steps=2, n_action_steps=8, **kwargs):
        env_id = "counting_env:Counting-v0"
        return EnvSpec(env_id, max_steps, n_obs_steps, n_action_steps, kwargs)

    return make


# The camera of this environment shows the time step and the number of rendered frames.
CAMERA_ENV = """
import numpy as np
from gymnasium import register, spaces
from ebt_policy.envs import manipulation_env

manipulation_env.require_rendering = lambda: None

class CameraEnv(manipulation_env.ManipulationEnv):
    render_camera, proprioception = "above", 1

    def __init__(self, **kwargs):
        self.drawn = self.t = 0
        space = spaces.Box(-1e6, 1e6, (2,), np.float32)
        super().__init__(space, {"time": 1}, ["above"], cameras=["above"], image_size=1, **kwargs)

    def frame(self, camera, size):
        self.drawn += 1
        return np.array([self.t, self.drawn, 0], dtype=np.uint8).reshape(1, 1, 3)

    def _reset_scene(self, seed):
        self.t = 0

    def restore(self, state):
        self.t = int(state[0])

    def _apply_action(self, action):
        self.t += 1

    def _low_dim_observation(self):
        return np.array([self.t])

    def get_state(self):
        return np.array([self.t], dtype=float)

    def _is_solved(self):
        return False

register("CameraEnv-v0", CameraEnv)
"""


@pytest.mark.parametrize("perturbed", [False, True])
def test_cameras_render_only_observed_frames(tmp_path, monkeypatch, perturbed):
    (tmp_path / "camera_env.py").write_text(CAMERA_ENV)
    monkeypatch.syspath_prepend(tmp_path)
    perturbation = Perturbation("delay", 1) if perturbed else None
    spec = EnvSpec("camera_env:CameraEnv-v0", 20, 2, 8, perturbation=perturbation)
    observations = []

    class CameraPolicy:
        def predict_chunk(self, obs, generator=None):
            observations.append(obs)
            return SimpleNamespace(actions=torch.zeros(1, 16, 2))

    rollout(CameraPolicy(), spec, [1, 2], workers=1)
    times = torch.stack([obs["above"][0, :, 0, 0, 0] for obs in observations])
    assert torch.equal(times, torch.stack([obs["obs"][0, :, 0] for obs in observations]).byte())
    if not perturbed:
        assert times.tolist() == [[0, 0], [7, 8], [15, 16]] * 2
        draw_counts = [obs["above"][0, -1, 0, 0, 1].item() for obs in observations]
        assert draw_counts == [1, 3, 5, 6, 8, 10]


class Noisy:
    """A policy that uses both observations and the generator, and records batch sizes."""

    def __init__(self):
        self.batches = []

    def predict_chunk(self, obs, *, constraints=None, generator=None):
        newest, oldest = obs["obs"][:, -1:], obs["obs"][:, :1]
        noise = torch.stack([torch.randn(16, 2, generator=g) for g in generator or []])
        self.batches.append(len(noise))
        actions = 0.8 * newest[..., :2] + 0.2 * oldest[..., 18:] + 40 * noise
        return SimpleNamespace(
            actions=actions,
            energy=actions.sum((1, 2)),
            grad_norm=None,
            steps_used=torch.full((len(noise),), 4),
        )


class Indexed:
    """A policy without energies; action i is 1000 t + i if the newest observation is step t."""

    def __init__(self, horizon=16):
        self.horizon, self.seen = horizon, []

    def predict_chunk(self, obs, *, constraints=None, generator=None):
        self.seen.append(obs["obs"][..., 0].clone())
        index = torch.arange(self.horizon, dtype=torch.float32)[:, None]
        return SimpleNamespace(actions=1000 * obs["obs"][:, -1:] + index)


def test_workers_do_not_import_torch():
    modules = ("worker", "push_t_env", "mp4_writer")
    code = "import sys; "
    code += "; ".join(f"import ebt_policy.envs.{name}" for name in modules)
    code += "; sys.exit('torch' in sys.modules)"
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def test_results_do_not_depend_on_the_number_of_workers():
    reference = rollout(Noisy(), SHORT, SEEDS, workers=1, collect=True)
    assert [r.seed for r in reference] == SEEDS
    for workers in (2, 3):
        policy, finished = Noisy(), []
        results = rollout(
            policy, SHORT, SEEDS, workers=workers, collect=True, on_episode=finished.append
        )
        assert [r.seed for r in results] == SEEDS
        assert sorted(r.seed for r in finished) == sorted(SEEDS)
        assert policy.batches[0] == workers  # full batches
        for a, b in zip(reference, results, strict=True):
            np.testing.assert_array_equal(a.rows["state"], b.rows["state"])
            np.testing.assert_array_equal(a.rows["action"], b.rows["action"])
            assert (a.score, a.success, a.length) == (b.score, b.success, b.length)
            assert [c.energy for c in a.chunks] == [c.energy for c in b.chunks]


def test_pool_is_reusable_and_noise_depends_on_the_episode():
    with RolloutPool(SHORT, 1) as pool:
        first = pool.rollout(Noisy(), [1, 2], collect=True)
        again = pool.rollout(Noisy(), [2], collect=True)[0]
    np.testing.assert_array_equal(first[1].rows["action"], again.rows["action"])
    assert not np.array_equal(first[0].rows["action"][:5], again.rows["action"][:5])
    with pytest.raises(RuntimeError, match="closed"):
        pool.rollout(Noisy(), [1])


def test_chunks_are_recorded():
    (result,) = rollout(Noisy(), SHORT, [0])
    assert result.length == 20 and [c.step for c in result.chunks] == [0, 8, 16]
    assert all(c.steps_used == 4 and c.grad_norm is None for c in result.chunks)
    assert all(isinstance(c.energy, float) and c.latency_ms > 0 for c in result.chunks)
    assert result.rows is None and result.video is None
    assert 0 <= result.score <= 1 and not result.success


@pytest.mark.parametrize(("n_obs", "n_act", "horizon"), [(2, 8, 16), (1, 3, 3), (3, 5, 7)])
def test_executed_actions_follow_the_newest_observation(counting, n_obs, n_act, horizon):
    """Each chunk runs n_action_steps actions, from the step of the newest observation on."""
    policy, length = Indexed(horizon), 12
    (result,) = rollout(policy, counting(30, n_obs, n_act), [length], collect=True)
    starts = np.arange(length) // n_act * n_act
    expected = 1000 * starts + (n_obs - 1) + np.arange(length) - starts
    np.testing.assert_array_equal(result.rows["action"][:, 0], expected)
    np.testing.assert_array_equal(result.rows["state"][:, 0], np.arange(length))
    for chunk, observation in zip(result.chunks, policy.seen, strict=True):
        window = np.maximum(np.arange(chunk.step - n_obs + 1, chunk.step + 1), 0)
        np.testing.assert_array_equal(observation[0], window)
        assert chunk.energy is None and chunk.grad_norm is None and chunk.steps_used is None


def test_score_is_the_best_reward_and_success_counts_once_reached(counting):
    short, long, limited = rollout(Indexed(), counting(15), [1, 9, 99], workers=2)
    assert (short.score, short.success, short.length) == (0.1, False, 1)
    assert (long.score, long.success, long.length) == (0.5, True, 9)
    assert (limited.score, limited.success, limited.length) == (0.5, True, 15)


def test_no_seeds_give_no_results():
    assert rollout(Noisy(), SHORT, []) == []


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_must_be_positive(workers):
    with pytest.raises(ValueError, match="workers must be at least 1"):
        rollout(Noisy(), SHORT, [1], workers=workers)


@pytest.mark.parametrize("name", ["max_steps", "n_obs_steps", "n_action_steps"])
def test_spec_refuses_zero_steps(name):
    with pytest.raises(ValueError, match=name):
        EnvSpec(**{"env_id": "x", "max_steps": 5, name: 0})


def test_too_short_chunks_are_refused(counting):
    with pytest.raises(ValueError, match=r"predicts 8 actions, but .* need at least 9"):
        rollout(Indexed(horizon=8), counting(), [5])


def test_worker_error_is_reported_with_its_traceback(counting):
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*ZeroDivisionError: the simulator"):
        rollout(Indexed(), counting(raise_at=4), [9, 10], workers=2)


def test_exit_of_a_worker_is_reported(counting):
    with pytest.raises(RuntimeError, match="exit code 3"):
        rollout(Indexed(), counting(exit_at=2), [9])


def test_unknown_environment_is_reported():
    with pytest.raises(RuntimeError, match="NoSuch"):
        rollout(Indexed(), EnvSpec("NoSuch-v0", 10), [1])


@pytest.mark.parametrize("error", [OverflowError, KeyboardInterrupt])
def test_failing_policy_ends_the_workers(counting, error):
    class Failing:
        def predict_chunk(self, obs, generator=None):
            raise error("enough")

    pool = RolloutPool(counting(), 2)
    processes = [worker._process for worker in pool._workers]
    with pytest.raises(error, match="enough"):
        pool.rollout(Failing(), [1, 2, 3])
    assert all(process.poll() is not None for process in processes)


def test_nan_from_the_policy_is_refused(counting):
    class Nan(Indexed):
        def predict_chunk(self, obs, **options):
            chunk = super().predict_chunk(obs, **options)
            chunk.actions[-1, 3] = float("nan")
            return chunk

    with pytest.raises(ValueError, match="NaN or infinity in the episode of seed 5"):
        rollout(Nan(), counting(), [5])


def test_videos_are_readable(tmp_path):
    import av

    folder = tmp_path / "deep" / "videos"
    results = rollout(Noisy(), SHORT, [4, 5], workers=2, videos=1, video_dir=folder)
    plain = rollout(Noisy(), SHORT, [4, 5], workers=1)
    assert [r.score for r in results] == [r.score for r in plain]
    assert results[0].video == str(folder / "seed_4.mp4") and results[1].video is None
    assert [p.name for p in folder.iterdir()] == ["seed_4.mp4"]
    with av.open(results[0].video) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.codec_context.pix_fmt == "yuv420p" and stream.average_rate == 20
    assert len(frames) == 21 and frames[0].shape == (256, 256, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50


def test_frames_of_odd_size_are_recorded(counting, tmp_path):
    rollout(Indexed(), counting(), [5], videos=3, video_dir=tmp_path)
    assert (tmp_path / "seed_5.mp4").stat().st_size > 0


def test_failed_episode_leaves_no_video(counting, tmp_path):
    folder = tmp_path / "videos"
    with pytest.raises(RuntimeError, match="blew up"):
        rollout(Indexed(), counting(raise_at=4), [9], videos=1, video_dir=folder)
    assert list(folder.iterdir()) == []


def test_videos_need_a_folder():
    with pytest.raises(ValueError, match="video_dir"):
        rollout(Noisy(), SHORT, [1], videos=1)


def test_video_writer_refuses_missing_and_unequal_frames(tmp_path):
    from ebt_policy.envs.mp4_writer import video_writer

    frame = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="no frame"), video_writer(tmp_path / "a.mp4", 10):
        pass
    with pytest.raises(ValueError, match="shape"), video_writer(tmp_path / "a.mp4", 10) as add:
        add(frame)
        add(frame[:8])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("modes", "renders"), [({"render_modes": []}, False), ({"render_modes": ["rgb_array"]}, True)]
)
def test_videos_need_a_declared_render_mode(modes, renders, monkeypatch):
    class Still(gymnasium.Env):
        metadata = modes
        observation_space = action_space = gymnasium.spaces.Box(-1, 1, (1,))

    gymnasium.register("Still-v0", Still)
    try:
        assert EnvSpec("Still-v0", 5).renders == renders
    finally:
        del gymnasium.registry["Still-v0"]


def test_an_unknown_environment_may_render():
    assert EnvSpec("nothing:Nothing-v0", 5).renders  # `make` says that it is unknown
    assert EnvSpec("ebt_policy/PushT-v0", 5).renders
