"""What an energy costs a language model: ``python -m benchmarks.language_speed [rounds=12]``.

Settings: width (256), heads (8), layers (4), context (128), batch (8), vocabulary (2048), rounds,
reference (a checkout of github.com/alexiglad/EBT, "" leaves it out; it needs pytorch-lightning,
torchmetrics, torchvision and transformers). Times training updates of Transformer++, the refiner
and the energy model, eager and compiled, with the reference's own models of the same sizes, all in
turns, on one CPU thread or a GPU; and the memory of an update, each in a process of its own. Writes
``docs/results/language_speed.json``.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from benchmarks.settings import DEVICE, command, settings, store, wait
from ebt_policy.language.model import build_language_model

S1 = {"name": "s1", "steps": 2, "start": 0.0}
OURS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "Transformer++": ({"name": "transformer_pp"}, None),
    "energy, 2 steps": ({"name": "ebt", "candidate_layers": None}, S1),
    "energy, 2 steps, guesses through one block": ({"name": "ebt", "candidate_layers": 1}, S1),
    "refiner, 2 steps": ({"name": "refiner", "candidate_layers": None}, S1),
}
THEIRS = {"reference Transformer++": "baseline_transformer", "reference energy, 2 steps": "ebt"}
# Of the published S1 recipe; most of the rest only have to be there.
PUBLISHED = {
    "weight_initialization_method": "xavier", "weight_initialization_gain": 1.0,
    "execution_mode": "pretrain", "debug_unused_parameters": False, "tokenizer": "",
    "mcmc_step_size": 500.0, "mcmc_num_steps": 2, "ebt_type": "time_embed",
    "normalize_initial_condition": True, "denoising_initial_condition": "random_noise",
    "mcmc_step_size_learnable": True, "no_mcmc_detach": False, "ebt_norm": "rms",
    "ebt_act_func": "silu", "dyt_alpha_init": 0.5, "mcmc_replay_buffer": False,
    "gaussian_random_noise_scaling": 1.0, "normalize_initial_condition_only_first_step": False,
    "randomize_mcmc_step_size_scale": 1.0, "randomize_mcmc_num_steps": 0,
    "randomize_mcmc_num_steps_min": 0, "randomize_mcmc_num_steps_final_landscape": False,
    "langevin_dynamics_noise": 0.0, "langevin_dynamics_noise_learnable": False,
    "vocab_to_embed_uses_prob_dist": False, "num_modality_processing_mlp_layers": 1,
    "truncate_mcmc": False, "clamp_futures_grad": False, "clamp_futures_grad_max_change": 9.0,
    "absolute_clamp": 0.0, "clamp_max_after_warm_up": 0.0, "sharpen_predicted_distribution": 0.0,
    "reconstruction_coeff": 1.0, "contrastive_loss": False, "contrastive_loss_coeff": 0.0005,
    "soften_target_prob_dist": 0.0,
}  # fmt: skip


class Update:
    """One training update of a model on random tokens."""

    def __init__(self, model: Any, loss: Callable[[Any, torch.Tensor], torch.Tensor], given: Any):
        self.model, self.loss, self.given = model.to(DEVICE), loss, given
        self.parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def __call__(self) -> float:
        """Seconds."""
        shape = (self.given.batch, self.given.context + 1)
        tokens = torch.randint(1, self.given.vocabulary, shape, device=DEVICE)
        wait()
        start = time.perf_counter()
        self.loss(self.model, tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        wait()
        return time.perf_counter() - start


def untrained(name: str, size: dict[str, int], context: int, vocabulary: int) -> Any:
    """Return a language model of this package, one of `OURS`.

    Args:
        size: width, heads and layers.
    """
    section, objective = OURS[name]
    words = {str(i): i for i in range(vocabulary)}
    return build_language_model(
        {
            "model": section if objective is None else {**section, "inference": {"steps": 2}},
            "objective": objective,
            "task": {"context": context},
            "size": size,
        },
        Tokenizer(WordLevel(words, unk_token="0")),
    )


def ours(name: str, given: Any, compiled: bool) -> Update:
    """A model of this package."""
    size = {"width": given.width, "heads": given.heads, "layers": given.layers}
    made = untrained(name, size, given.context, given.vocabulary)
    if compiled:
        made.compile()
    return Update(made, lambda model, tokens: model(model.draw({"tokens": tokens}))[0], given)


def theirs(name: str, given: Any) -> Update:
    """A model of the reference implementation, as it is: it cannot be compiled."""
    sys.path.insert(0, given.reference)
    import transformers  # pyright: ignore[reportMissingImports]

    class Words:
        eos_token_id = 0

        def __len__(self) -> int:
            return given.vocabulary

    transformers.AutoTokenizer.from_pretrained = lambda *_, **__: Words()  # no network
    from model.nlp.baseline_transformer import (  # pyright: ignore[reportMissingImports]
        Baseline_Transformer_NLP,
    )
    from model.nlp.ebt import EBT_NLP  # pyright: ignore[reportMissingImports]

    kind = EBT_NLP if THEIRS[name] == "ebt" else Baseline_Transformer_NLP
    sizes = {
        "embedding_dim": given.width, "num_transformer_blocks": given.layers,
        "multiheaded_attention_heads": given.heads, "ffn_dim_multiplier": 8 / 3,
        "context_length": given.context, "batch_size_per_device": given.batch,
    }  # fmt: skip
    model = kind(SimpleNamespace(**PUBLISHED, **sizes))

    def loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
        return model.forward_loss_wrapper({"input_ids": tokens}, "train")["loss"]

    return Update(model, loss, given)


def make(name: str, how: str, given: Any) -> Update:
    """One of all, by name."""
    torch.manual_seed(0)
    return theirs(name, given) if name in THEIRS else ours(name, given, how == "compiled")


def peak(name: str, how: str, given: Any, queue: Any) -> None:
    """MiB that two updates need beyond what the model does, in a process of its own."""
    torch.set_num_threads(1)
    update = make(name, how, given)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:  # the kernel's own mark, which starts anew when it is told to (Linux)
        Path("/proc/self/clear_refs").write_text("5")
    before = _peak_mib()
    for _ in range(2):
        update()
    queue.put(_peak_mib() - before)


def _peak_mib() -> float:
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def main() -> None:
    given = settings(
        width=256, heads=8, layers=4, context=128, batch=8, vocabulary=2048, rounds=12,
        reference="",
    )  # fmt: skip
    torch.set_num_threads(1)
    jobs = [(name, how) for how in ("eager", "compiled") for name in OURS]
    jobs += [(name, "eager") for name in THEIRS if given.reference]
    updates = {job: make(*job, given) for job in jobs}
    for update in updates.values():
        for _ in range(2):  # the first compiles
            update()
    times: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    for _ in range(given.rounds):
        for job, update in updates.items():
            times[job].append(update())
    middle = {job: statistics.median(seconds) for job, seconds in times.items()}
    spawn = multiprocessing.get_context("spawn")
    entries = []
    for job in jobs:
        name, how = job
        queue = spawn.Queue()
        memory = None
        if how == "eager":  # compiling takes memory of its own
            process = spawn.Process(target=peak, args=(*job, given, queue))
            process.start()
            memory = queue.get()
            process.join()
        entries.append(
            {
                "name": name,
                "how": how,
                "params": updates[job].parameters,
                "ms": 1e3 * middle[job],
                "times_transformer_pp": middle[job] / middle["Transformer++", how],
                "memory_mib": memory,
            }
        )
        print(entries[-1], flush=True)
    result: dict[str, Any] = {"entries": entries, **vars(given), "device": DEVICE.type}
    if given.reference:
        energy, own = (f"{who}energy, 2 steps" for who in ("reference ", ""))
        result["reference_takes"] = {
            how: middle[energy, "eager"] / middle[own, how] for how in ("eager", "compiled")
        }
        plain = middle["reference Transformer++", "eager"]
        result["reference_times_transformer_pp"] = middle[energy, "eager"] / plain
        result["reference"] = "github.com/alexiglad/EBT"
    result["command"] = command("language_speed").replace(given.reference or "\n", "EBT")
    store("language_speed.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
