"""What is recorded of every model and objective: five updates and what it predicts after them.

Each case is a tiny training by the command's own code (configuration, data, trainer, checkpoint) on
data that is made here, and predictions of the checkpoint that it leaves. `tests/golden` holds the
records, the checkpoints and two interrupted runs; `tests/test_golden.py` compares with them.

    python tests/golden_cases.py  # writes tests/golden anew

Write them anew only when a change of the numbers is intended, or a case is added: the records, the
checkpoints and the runs are those of the code that wrote them, which later code must agree with and
read. `python tests/golden_cases.py CASE ...` writes only those cases, say, new ones.

Where something is renamed, the section "cases" (options) and the section "adapter" (names) follow.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import av
import numpy as np
import torch
from conftest import compose_config
from PIL import Image
from torch import Tensor
from training_runs import logged

from ebt_policy import train as training
from ebt_policy.data.episode_store import write_episodes
from ebt_policy.data.episodes import Episodes
from ebt_policy.image.model import ImageModel
from ebt_policy.language.masked_lm import MaskedModel
from ebt_policy.language.model import TextModel
from ebt_policy.models.base import checkpoint_folder
from ebt_policy.policies import ChunkConstraints, load_policy
from ebt_policy.video.autoencoder import Autoencoder, frame_features
from ebt_policy.video.model import VideoModel

GOLDEN = Path(__file__).parent / "golden"
RECORDS, PREDICTIONS = GOLDEN / "records.json", GOLDEN / "predictions.npz"
CHECKPOINTS, RUNS = GOLDEN / "checkpoints", GOLDEN / "runs"
UPDATES = 5

Found = dict[str, Any]  # name -> tensor or text

# -- cases -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A training and the ways in which its result predicts.

    Args:
        arguments: of the command.
        ways: name -> changes of how it predicts, one after the other.
        extra: the optional dependency that it needs.
    """

    arguments: tuple[str, ...]
    ways: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra: str | None = None


SHARED = (
    "size.width=8", "size.heads=2", "device=cpu", "train.minutes=null", f"train.steps={UPDATES}",
    "train.lr=0.003", "train.warmup_steps=2", "train.compile=false", "train.eval_every=0",
    "train.log_every=1",
)  # fmt: skip
ROBOT = (
    *SHARED, "size.layers=1", "train.batch_size=8", "task.horizon=8", "task.n_action_steps=4",
    "task.validation_episodes=1", "evaluation.episodes=0",
)  # fmt: skip
PUSH_T = ("task=push_t", "task.path=push_t", *ROBOT)
TEXT = (
    "task=text", "task.path=text.txt", *SHARED, "size.layers=2", "task.tokenizer=char",
    "task.context=8", "train.batch_size=4", "evaluation.final=false",
)  # fmt: skip
IMAGE = (
    "task=image", "task.path=images", *SHARED, "size.layers=1", "task.side=8", "train.batch_size=4",
    "evaluation.final=false",
)  # fmt: skip
VIDEO = (
    "task=video", "task.path=clips.mkv", *SHARED, "task.height=8", "task.width=8", "task.context=4",
    "train.batch_size=4", "evaluation.final=false",
)  # fmt: skip
AUTOENCODER = "features"  # folder of the one whose features the other models of video see
FEATURES = (*VIDEO, "size.layers=2", f"task.features={AUTOENCODER}")
SEVERAL = {"one": {"num_candidates": 1}, "several": {"num_candidates": 5}}
# Of guesses that start from noise, and of those that all start from the same place.
GUESSES: dict[str, Any] = {
    "several": {"num_candidates": 4},
    "more": {"steps": 4, "reject_energy_increase": True},
}
STEPS: dict[str, Any] = {
    "more": {"steps": 4, "stop_grad_norm": 0.05, "reject_energy_increase": True}
}
GENERATING = ("task.max_noise_level=1000",)

CASES: dict[str, Case] = {
    "autoencoder/kl": Case(
        (*VIDEO, "model=autoencoder", "model.channels=[8,8]", "model.latent=2")
    ),
    "robot/ebt_flow": Case(
        (*PUSH_T, "model=ebt", "objective=flow"),
        SEVERAL
        | {
            "lands": {"num_candidates": 4, "steps": 4, "straightness_tol": 0.5},
            "drop": {
                "num_candidates": 4, "straightness_tol": None, "select": "energy_decrease",
                "scoring_level": 0.7,
            },
            "medoid": {"select": "medoid"},
            "density": {"select": "density", "warm_start_steps": 2, "warm_start_level": 0.3},
        },
    ),
    "robot/ebt_flow_untold": Case(
        (
            *PUSH_T, "model=ebt", "objective=flow", "objective.condition_on_noise_level=false",
            "objective.noise_samples_per_target=2",
        ),
        SEVERAL,
    ),
    "robot/ebt_equilibrium": Case(
        (*PUSH_T, "model=ebt", "objective=equilibrium"),
        SEVERAL | {"stops": {"steps": 4, "stop_grad_norm": 0.5}},
    ),
    "robot/ebt_s1": Case((*PUSH_T, "model=ebt", "objective=s1"), SEVERAL),
    "robot/ebt_s2": Case((*PUSH_T, "model=ebt", "objective=s2", "objective.replay=12"), SEVERAL),
    "robot/ebt_s2_momentum": Case(
        (*PUSH_T, "model=ebt", "objective=s2", "objective.replay=0", "objective.momentum=0.3"),
        SEVERAL,
    ),
    "robot/ebt_contrastive": Case((*PUSH_T, "model=ebt", "objective=contrastive"), SEVERAL),
    "robot/ebt_absolute": Case(
        (*PUSH_T, "model=ebt", "task.relative_to=null", "task.align=false", "task.mirror=false"),
        SEVERAL,
    ),
    "robot/ebt_told_prefix": Case((*PUSH_T, "model=ebt", "task.max_prefix_len=3"), SEVERAL),
    "robot/ebt_lift": Case(("task=lift", "task.path=lift", *ROBOT, "model=ebt"), SEVERAL),
    "robot/ebt_pixels": Case(
        (
            "task=push_t_image", "task.path=push_t", *ROBOT, "model=ebt", "vision.keypoints=2",
            "vision.stage=0", "vision.downsample=4",
        ),
        SEVERAL, extra="timm",
    ),
    "robot/bc": Case((*PUSH_T, "model=bc")),
    "robot/bc_told_prefix": Case((*PUSH_T, "model=bc", "task.max_prefix_len=3")),
    "robot/diffusion": Case(
        (*PUSH_T, "model=diffusion", "model.inference.steps=6"),
        SEVERAL
        | {
            "medoid": {"select": "medoid"},
            "line_integral": {"select": "line_integral"},
            "ddim": {"num_candidates": 1, "scheduler": "ddim", "steps": 3},
        },
    ),
    "robot/diffusion_epsilon": Case(
        (*PUSH_T, "model=diffusion", "model.prediction=epsilon", "model.inference.steps=6"), SEVERAL
    ),
    "robot/diffusion_unet": Case(
        (*PUSH_T, "model=diffusion", "model.network=unet", "model.inference.steps=6"), SEVERAL
    ),
    "robot/flow_matching": Case(
        (*PUSH_T, "model=flow_matching"),
        SEVERAL | {"line_integral": {"select": "line_integral", "steps": 2}},
    ),
    "robot/ibc": Case((*PUSH_T, "model=ibc", "model.negatives=8", "model.inference.samples=16")),
    "text/ebt_s1": Case((*TEXT, "model=ebt", "objective=s1"), STEPS),
    "text/ebt_s1_told": Case(
        (*TEXT, "model=ebt", "objective=s1", "objective.step_conditioned=true")
    ),
    "text/ebt_s2": Case((*TEXT, "model=ebt", "objective=s2"), GUESSES),
    "text/ebt_s2_replay": Case(
        (*TEXT, "model=ebt", "objective=s2", "objective.replay=6", "objective.noise=[0.2,0.002]")
    ),
    "text/ebt_corrupted": Case((*TEXT, "model=ebt", "objective=s1_corrupted"), GUESSES),
    "text/ebt_guess_layers": Case((*TEXT, "model=ebt", "model.candidate_layers=1")),
    "text/ebt_bpe": Case(
        (*TEXT, "model=ebt", "task.tokenizer=bpe", "task.vocab_size=270")
    ),
    "text/refiner_s1": Case((*TEXT, "model=refiner", "objective=s1")),
    "text/refiner_s2": Case((*TEXT, "model=refiner", "objective=s2")),
    "text/refiner_corrupted": Case((*TEXT, "model=refiner", "objective=s1_corrupted")),
    "text/transformer_pp": Case((*TEXT, "model=transformer_pp")),
    "text/masked_ebt_s1": Case((*TEXT, "model=masked_ebt", "objective=s1"), STEPS),
    "text/masked_ebt_s2": Case((*TEXT, "model=masked_ebt", "objective=s2"), GUESSES),
    "text/masked_ebt_corrupted": Case(
        (*TEXT, "model=masked_ebt", "objective=s1_corrupted"), GUESSES
    ),
    "text/masked_ebt_product": Case((*TEXT, "model=masked_ebt", "model.energy=product")),
    "text/bert": Case((*TEXT, "model=bert")),
    "image/ebt_s1": Case((*IMAGE, "model=ebt", "objective=s1"), STEPS),
    "image/ebt_s1_told": Case(
        (*IMAGE, "model=ebt", "objective=s1", "objective.step_conditioned=true")
    ),
    "image/ebt_s2": Case((*IMAGE, "model=ebt", "objective=s2", "objective.replay=6")),
    "image/ebt_corrupted": Case((*IMAGE, "model=ebt", "objective=s1_corrupted")),
    "image/ebt_equilibrium": Case(
        (*IMAGE, "model=ebt", "objective=equilibrium", *GENERATING, "task.classes=true"), GUESSES
    ),
    "image/ebt_grey": Case((*IMAGE, "model=ebt", "task.channels=1")),
    "image/refiner_s1": Case((*IMAGE, "model=refiner", "objective=s1")),
    "image/refiner_s2": Case((*IMAGE, "model=refiner", "objective=s2", "objective.replay=6")),
    "image/refiner_corrupted": Case((*IMAGE, "model=refiner", "objective=s1_corrupted")),
    "image/refiner_equilibrium": Case(
        (*IMAGE, "model=refiner", "objective=equilibrium", *GENERATING)
    ),
    "image/dit": Case(
        (*IMAGE, "model=dit", "model.inference.steps=5"),
        {
            "untold": {"start_at_noise_level": False},
            "ddpm": {"start_at_noise_level": True, "scheduler": "ddpm"},
        },
    ),
    "image/dit_classes": Case(
        (*IMAGE, "model=dit", "model.inference.steps=5", *GENERATING, "task.classes=true")
    ),
    "video/ebt_s1": Case((*FEATURES, "model=ebt", "objective=s1"), STEPS),
    "video/ebt_s2": Case((*FEATURES, "model=ebt", "objective=s2"), GUESSES),
    "video/refiner_s1": Case((*FEATURES, "model=refiner", "objective=s1")),
    "video/refiner_s2": Case((*FEATURES, "model=refiner", "objective=s2")),
    "video/transformer_pp": Case((*FEATURES, "model=transformer_pp")),
}  # fmt: skip

# Those whose checkpoints are kept: one of each form.
STORED = (
    "autoencoder/kl", "video/ebt_s1", "video/transformer_pp", "robot/ebt_flow",
    "robot/ebt_equilibrium", "robot/ebt_s1", "robot/ebt_s2", "robot/ebt_contrastive",
    "robot/ebt_told_prefix", "robot/ebt_lift", "robot/ebt_pixels", "robot/bc", "robot/diffusion",
    "robot/flow_matching", "robot/ibc", "text/ebt_s1", "text/refiner_s1", "text/transformer_pp",
    "text/masked_ebt_s1", "text/bert", "image/ebt_s1", "image/ebt_equilibrium", "image/dit",
)  # fmt: skip

# Runs that were interrupted half way: name -> arguments. Their logs and losses go on to the end.
INTERRUPTED = {
    "interrupted/robot": (
        *PUSH_T, "model=ebt", "objective=s2", "objective.replay=12", f"train.steps={2 * UPDATES}",
        f"train.checkpoint_every={UPDATES}",
    ),
    "interrupted/text": (
        *TEXT, "model=ebt", "size.layers=1", f"train.steps={2 * UPDATES}",
        f"train.checkpoint_every={UPDATES}",
    ),
}  # fmt: skip

# Those whose compiled predictions are compared with the eager ones.
COMPILED = ("robot/ebt_equilibrium", "robot/flow_matching", "robot/bc")


# -- adapter ---------------------------------------------------------------------------------------


def train(arguments: tuple[str, ...], run: str) -> Path:
    """Train as `python -m ebt_policy.train` does with some arguments; the run folder."""
    return training.train(compose_config(*arguments, f"run_dir={run}"))


def losses(run: Path) -> list[float]:
    """The loss of each update, and that of the averaged weights on what is held out at the end."""
    lines = logged(run)
    return [line["loss"] for line in lines] + [lines[-1]["validation_loss"]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observed(policy: Any) -> dict[str, Tensor]:
    """Two observations of a policy, env units; Push-T's are pixels, all others are near zero."""
    shape = policy.shape
    obs = normal(2, shape.n_obs_steps, shape.obs_dim, seed=1)
    seen = {"obs": 250 + 40 * obs if policy.config["task"]["name"] != "lift" else obs}
    for name, (height, width) in (shape.cameras or {}).items():
        images = 128 + 50 * normal(2, shape.n_obs_steps, height, width, 3, seed=2)
        seen[name] = images.clamp(0, 255).to(torch.uint8)
    return seen


def chunks(policy: Any, folder: Path, terms: Sequence[str] = ("free", "bound", "warm")) -> Found:
    """Chunks as they come, and with a committed beginning, limits and an earlier plan."""
    obs, shape, found = observed(policy), policy.shape, {}
    middle, spread = obs["obs"].mean(), obs["obs"].std()
    plan = middle + 0.5 * spread * normal(2, shape.horizon, shape.action_dim, seed=3)
    low, high = float(middle - spread), float(middle + spread)
    bound = {"prefix": plan[:, :3], "project": lambda x: x.clamp(low, high)}
    given: dict[str, Any] = {"free": {}, "bound": bound, "warm": {"warm_start": plan, **bound}}
    for name in terms:
        constraints = ChunkConstraints(**given[name])
        chunk = policy.predict_chunk(obs, constraints=constraints, generator=seeded())
        found[f"{name} actions"], found[f"{name} energy"] = chunk.actions, chunk.energy
        found[f"{name} gradient"], found[f"{name} steps"] = chunk.grad_norm, chunk.steps_used
    if hasattr(policy, "energies"):
        found["energies of plans"] = policy.energies(obs, plan.unsqueeze(1))
    return found


def words(model: Any, folder: Path) -> Found:
    """Logits, surprisal and, of models that write, energies and text."""
    drawn = np.random.default_rng(4).integers(0, model.vocabulary, (2, model.context + 1))
    tokens, found = torch.from_numpy(drawn), {}
    with torch.no_grad():
        found["surprisal"] = model.surprisal(tokens, seeded())
        if isinstance(model, MaskedModel):
            found["logits"] = model.predict_masked(
                tokens, model.mask_positions(tokens, seeded()), seeded(1)
            )[:1]
            return found
        seen = model.observe(tokens[:, :-1])
        found["logits"] = model.predict(seen, seeded())[:1]
        if hasattr(model, "descend"):
            found["energies"] = model.descend(seen, seeded()).energies
        for temperature in (0.0, 1.0):
            pieces = model.generate("fox", 12, temperature=temperature, generator=seeded())
            found[f"text at {temperature}"] = "".join(pieces)
    return found


def pixels(model: Any, folder: Path) -> Found:
    """What is left of noise, energies on the way, features, and signs of the unlike."""
    shape = model.shape
    clean = (0.5 * normal(2, shape.channels, shape.side, shape.side, seed=5)).clamp(-1, 1)
    labels = torch.tensor([1, 0]) if shape.classes else None
    noisy = model.add_noise(clean, shape.max_noise_level, seeded())
    restored = model.denoise(noisy, shape.max_noise_level, labels, seeded(1))
    found = {"images": restored.images, "energies": restored.energies}
    found["features"] = model.features(clean, 50, labels, seeded())
    if labels is None:
        found |= model.ood_scores(clean, seeded())
    return found


def frames(model: Any, folder: Path) -> Found:
    """Errors, signals and a rollout."""
    given = normal(2, model.context + 1, model.features, seed=7).cumsum(1)
    error, signals = model.errors(given, seeded())
    return {"error": error, **signals, "rollout": model.rollout(given, 3, seeded(1))}


def features(model: Any, folder: Path) -> Found:
    """Features of frames, and frames made of them."""
    made: Any = frame_features(str(folder), torch.device("cpu"))
    seen = (128 + 50 * normal(2, 8, 8, 3, seed=6)).clamp(0, 255).to(torch.uint8)
    found = made.encode(seen)
    return {"features": found, "bytes": made.decode(found, 8, 8).float()}


# Kind -> its loader, and what is recorded of its predictions.
KINDS: dict[str, tuple[Callable[[Path], Any], Callable[[Any, Path], Found]]] = {
    "robot": (load_policy, chunks),
    "text": (TextModel.from_checkpoint, words),
    "image": (ImageModel.from_checkpoint, pixels),
    "video": (VideoModel.from_checkpoint, frames),
    "autoencoder": (Autoencoder.from_checkpoint, features),
}


def predict(kind: str, folder: Path, ways: dict[str, dict[str, Any]]) -> Found:
    """All that is recorded of what the model in a folder predicts, always of the same input."""
    load, recorded = KINDS[kind]
    model, found = load(folder), {}
    for way, options in {"as trained": {}, **ways}.items():
        model.configure_inference(**options)
        found |= {f"{way}, {what}": value for what, value in recorded(model, folder).items()}
    return {what: value for what, value in found.items() if value is not None}


def predict_compiled(folder: Path) -> Found:
    """The same of a policy whose prediction is compiled, as trained: one chunk within limits."""
    policy = load_policy(folder)
    policy.compile_prediction()
    found = chunks(policy, folder, terms=("bound",))
    return {f"as trained, {what}": value for what, value in found.items() if value is not None}


# -- data ------------------------------------------------------------------------------------------


def make_data(place: Path) -> None:
    """Write what the cases learn from: episode stores, a text, images in classes and a video."""
    rng = np.random.default_rng(0)
    lengths = np.array([12, 15, 13, 11])
    ends, rows = np.cumsum(lengths), int(lengths.sum())
    walk = np.cumsum(rng.normal(0, 6, (rows, 5)), axis=0)
    state = (np.array([250, 240, 260, 250, 1]) + walk * [1, 1, 1, 1, 0.02]).clip(0, 500)
    action = (state[:, :2] + rng.normal(0, 10, (rows, 2))).clip(0, 512)
    arrays = {"state": state.astype(np.float32), "action": action.astype(np.float32)}
    write_episodes(place / "push_t", Episodes(arrays, ends))
    obs, action = rng.normal(0, 1, (rows, 6)), rng.normal(0, 1, (rows, 10))
    arrays = {"obs": obs.astype(np.float32), "action": action.astype(np.float32)}
    write_episodes(place / "lift", Episodes(arrays, ends))
    (place / "text.txt").write_text("the quick brown fox jumps over the lazy dog, naïvely\n" * 30)
    for number in range(12):
        folder = place / "images" / ("flat", "rough")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        around = rng.integers(40, 216, (1, 1, 3))
        image = (around + (5, 30)[number % 2] * rng.normal(0, 1, (24, 24, 3))).clip(0, 255)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
    _write_video(place / "clips.mkv", rng)


def _write_video(file: Path, rng: np.random.Generator) -> None:
    """A square that wanders, without loss."""
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10, options={"level": "3"})
        stream.width, stream.height, stream.pix_fmt = 8, 8, "bgr0"
        top = left = 3
        for _ in range(90):
            top, left = (int(np.clip(x + rng.integers(-1, 2), 0, 5)) for x in (top, left))
            pixels = np.full((8, 8, 3), (30, 60, 90), np.uint8)
            pixels[top : top + 3, left : left + 3] = (230, 200, 120)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@contextmanager
def at(place: Path) -> Iterator[None]:
    """Within it a folder is where paths start, its own cache is used, and one thread works.

    What a checkpoint says of its data is then the same everywhere.
    """
    before, threads = Path.cwd(), torch.get_num_threads()
    cache = os.environ.get("EBT_POLICY_CACHE")
    os.chdir(place)
    os.environ["EBT_POLICY_CACHE"] = str(place / "cache")
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        del os.environ["EBT_POLICY_CACHE"]
        if cache is not None:
            os.environ["EBT_POLICY_CACHE"] = cache
        os.chdir(before)


# -- records ---------------------------------------------------------------------------------------


WIDE = ("sse", "avx", "fma", "amx", "f16c")  # instructions by which libraries choose their own


def fingerprint() -> dict[str, str]:
    """What decides how numbers are rounded."""
    model = platform.processor()
    if (known := Path("/proc/cpuinfo")).is_file():
        lines = [line for line in known.read_text().splitlines() if ":" in line]
        said = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        names = ("vendor_id", "cpu family", "model", "model name")
        model = ", ".join(said[name] for name in names if name in said) or model
        kept = sorted(flag for flag in said.get("flags", "").split() if flag.startswith(WIDE))
        model += f", {crc32(' '.join(kept).encode()):08x}"
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "processor": model,
    }


def vector(found: Found) -> tuple[np.ndarray, dict[str, str]]:
    """The tensors of predictions as one array, and what is in it, in this order: name -> shape."""
    tensors = {what: value for what, value in found.items() if isinstance(value, Tensor)}
    shapes = {what: " ".join(map(str, value.shape)) for what, value in tensors.items()}
    return np.concatenate([value.float().numpy().ravel() for value in tensors.values()]), shapes


def parts(array: np.ndarray, shapes: dict[str, str]) -> dict[str, np.ndarray]:
    """Inverse of `vector`."""
    sizes = {what: [int(size) for size in shape.split()] for what, shape in shapes.items()}
    cut = np.split(array, np.cumsum([int(np.prod(shape)) for shape in sizes.values()])[:-1])
    return {what: x.reshape(shape) for x, (what, shape) in zip(cut, sizes.items(), strict=True)}


def texts(found: Found) -> dict[str, str]:
    return {what: value for what, value in found.items() if isinstance(value, str)}


def rounding_decides(name: str, what: str) -> bool:
    """Whether a prediction jumps where numbers are rounded differently.

    Of a sequence's many units one or another takes another of nearly equal guesses, or stops a step
    earlier, and a byte is the next one.
    """
    way, _, rest = what.partition(", ")
    sequence = kind_of(name) in ("text", "video")
    return rest == "bytes" or (sequence and way in {**GUESSES, **STEPS})


class Records:
    """What is stored of all cases.

    Attributes:
        made_by: `fingerprint` of the machine.
        cases: name -> ``losses`` as exact text, ``shapes`` of the predictions and ``texts``.
        arrays: name -> predictions, as `vector` puts them.
    """

    def __init__(self, made_by: dict[str, str], cases: dict[str, Any], arrays: dict[str, Any]):
        self.made_by, self.cases, self.arrays = made_by, cases, arrays

    @classmethod
    def read(cls) -> Records:
        stored = json.loads(RECORDS.read_text())
        with np.load(PREDICTIONS) as arrays:
            return cls(stored["made_by"], stored["cases"], dict(arrays))

    def write(self) -> None:
        lines = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in self.cases.items()]
        made_by, cases = json.dumps(self.made_by, indent=1), ",\n".join(lines)
        RECORDS.write_text(f'{{"made_by": {made_by},\n"cases": {{\n{cases}\n}}}}\n')
        arrays: dict[str, Any] = {name: self.arrays[name] for name in self.cases}
        np.savez_compressed(PREDICTIONS, **arrays)

    def add(self, name: str, losses: list[float], found: Found) -> None:
        self.arrays[name], shapes = vector(found)
        assert np.isfinite(self.arrays[name]).all() and np.isfinite(losses).all(), name
        hexadecimal = [loss.hex() for loss in losses]
        self.cases[name] = {"losses": hexadecimal, "shapes": shapes, "texts": texts(found)}

    def losses(self, name: str) -> list[float]:
        return [float.fromhex(loss) for loss in self.cases[name]["losses"]]

    def predictions(self, name: str) -> dict[str, np.ndarray]:
        return parts(self.arrays[name], self.cases[name]["shapes"])


# -- writing them ----------------------------------------------------------------------------------


def kind_of(name: str) -> str:
    """What a case or an interrupted run models."""
    first, second = name.split("/")
    return second if first == "interrupted" else first


def run_of(name: str) -> str:
    """The run folder of a case, or of an interrupted run, from the data on."""
    return f"runs/{name}"


def ready(place: Path) -> None:
    """Put what the cases learn from into an empty folder, with the autoencoder that is stored."""
    make_data(place)
    if (stored := CHECKPOINTS / "autoencoder/kl").is_dir():
        shutil.copytree(stored, place / AUTOENCODER)


def write(names: list[str]) -> None:
    """Write the records of some cases, all of them without names."""
    some = [name for name in CASES if name in names or not names]
    records = Records.read() if names else Records(fingerprint(), {}, {})
    if records.made_by != fingerprint():
        raise SystemExit(f"these records were made by {records.made_by}; write all of them anew.")
    if not names:
        for folder in (CHECKPOINTS, RUNS):
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder, at(Path(folder)):
        ready(Path.cwd())
        for name in some:
            case, run = CASES[name], train(CASES[name].arguments, run_of(name))
            records.add(name, losses(run), predict(kind_of(name), run, case.ways))
            if name in STORED:
                _store(checkpoint_folder(run), CHECKPOINTS / name, "trainer_state.pt")
            if name == "autoencoder/kl" and not names:
                shutil.copytree(CHECKPOINTS / name, AUTOENCODER)
        for name, arguments in {} if names else INTERRUPTED.items():
            run = train(arguments, run_of(name))
            records.add(name, losses(run), predict(kind_of(name), run, {}))
            shutil.rmtree(checkpoint_folder(run))
            lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
            (run / "log.jsonl").write_text("".join(lines[:UPDATES]))
            _store(run, RUNS / kind_of(name))
    records.cases = {n: records.cases[n] for n in [*CASES, *INTERRUPTED] if n in records.cases}
    records.write()


def _store(source: Path, to: Path, *without: str) -> None:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(source, to, ignore=shutil.ignore_patterns(*without))


if __name__ == "__main__":
    write(sys.argv[1:])
