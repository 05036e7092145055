"""Speed and memory of language models: ``python -m benchmarks.language_speed [rounds=12]``.

Options: width (256), heads (8), layers (4), context (128), batch (8), vocabulary (2048), rounds,
reference (a checkout of github.com/alexiglad/EBT; "" skips it). The reference needs
pytorch-lightning, torchmetrics, torchvision and transformers.

It times training updates of Transformer++, the refiner and the energy model, eager and compiled,
and of the reference's models of the same sizes. All are timed in turns, on one CPU thread or a GPU.
The memory of an update is measured in a process of its own. The results are written to
``docs/results/language_speed.json``.
"""

from __future__ import annotations

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

from benchmarks.command_line import command_line, parse_options
from benchmarks.device import DEVICE, synchronize
from benchmarks.results import store_json
from ebt_policy.language.model import build_language_model

S1 = {"name": "s1", "steps": 2, "init_std": 0.0}
PACKAGE_MODELS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "Transformer++": ({"name": "transformer_pp"}, None),
    "energy, 2 steps": ({"name": "ebt", "candidate_layers": None}, S1),
    "energy, 2 steps, guesses through one block": ({"name": "ebt", "candidate_layers": 1}, S1),
    "refiner, 2 steps": ({"name": "refiner", "candidate_layers": None}, S1),
}
REFERENCE_MODELS = {
    "reference Transformer++": "baseline_transformer",
    "reference energy, 2 steps": "ebt",
}
# Options of the published S1 recipe. Most other options have no effect, but all are required.
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

    def __init__(self, model: Any, loss: Callable[[Any, torch.Tensor], torch.Tensor], options: Any):
        self.model, self.loss, self.options = model.to(DEVICE), loss, options
        self.parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def __call__(self) -> float:
        """Make the update and return its duration in seconds."""
        shape = (self.options.batch, self.options.context + 1)
        tokens = torch.randint(1, self.options.vocabulary, shape, device=DEVICE)
        synchronize()
        start = time.perf_counter()
        self.loss(self.model, tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize()
        return time.perf_counter() - start


def untrained(name: str, size: dict[str, int], context: int, vocabulary: int) -> Any:
    """Return an untrained language model of this package.

    Args:
        name: one of `PACKAGE_MODELS`.
        size: width, heads and layers.
        context: maximum number of context tokens.
        vocabulary: number of different tokens.
    """
    section, objective = PACKAGE_MODELS[name]
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


def package_update(name: str, options: Any, compiled: bool) -> Update:
    """Return an update of a model of this package."""
    size = {"width": options.width, "heads": options.heads, "layers": options.layers}
    model = untrained(name, size, options.context, options.vocabulary)
    if compiled:
        model.compile()
    return Update(
        model, lambda model, tokens: model(model.with_noise({"tokens": tokens}))[0], options
    )


def reference_update(name: str, options: Any) -> Update:
    """Return an update of a model of the reference implementation, which cannot be compiled."""
    sys.path.insert(0, options.reference)
    import transformers  # pyright: ignore[reportMissingImports]

    class Words:
        eos_token_id = 0

        def __len__(self) -> int:
            return options.vocabulary

    transformers.AutoTokenizer.from_pretrained = lambda *_, **__: Words()  # no download
    from model.nlp.baseline_transformer import (  # pyright: ignore[reportMissingImports]
        Baseline_Transformer_NLP,
    )
    from model.nlp.ebt import EBT_NLP  # pyright: ignore[reportMissingImports]

    model_class = EBT_NLP if REFERENCE_MODELS[name] == "ebt" else Baseline_Transformer_NLP
    sizes = {
        "embedding_dim": options.width, "num_transformer_blocks": options.layers,
        "multiheaded_attention_heads": options.heads, "ffn_dim_multiplier": 8 / 3,
        "context_length": options.context, "batch_size_per_device": options.batch,
    }  # fmt: skip
    model = model_class(SimpleNamespace(**PUBLISHED, **sizes))

    def loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
        return model.forward_loss_wrapper({"input_ids": tokens}, "train")["loss"]

    return Update(model, loss, options)


def make(name: str, mode: str, options: Any) -> Update:
    """Return an update of a model; ``mode`` is ``eager`` or ``compiled``."""
    torch.manual_seed(0)
    return (
        reference_update(name, options)
        if name in REFERENCE_MODELS
        else package_update(name, options, mode == "compiled")
    )


def measure_memory(name: str, mode: str, options: Any, queue: Any) -> None:
    """Put the memory that two updates add to the model's own, MiB, into a queue.

    Run this in a process of its own.
    """
    torch.set_num_threads(1)
    update = make(name, mode, options)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:  # Linux: reset the peak memory of this process.
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
    options = parse_options(
        width=256, heads=8, layers=4, context=128, batch=8, vocabulary=2048, rounds=12,
        reference="",
    )  # fmt: skip
    torch.set_num_threads(1)
    jobs = [(name, mode) for mode in ("eager", "compiled") for name in PACKAGE_MODELS]
    jobs += [(name, "eager") for name in REFERENCE_MODELS if options.reference]
    updates = {job: make(*job, options) for job in jobs}
    for update in updates.values():
        for _ in range(2):  # The first update compiles.
            update()
    times: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    for _ in range(options.rounds):
        for job, update in updates.items():
            times[job].append(update())
    medians = {job: statistics.median(seconds) for job, seconds in times.items()}
    spawn = multiprocessing.get_context("spawn")
    entries = []
    for job in jobs:
        name, mode = job
        queue = spawn.Queue()
        memory = None
        if mode == "eager":  # Compiling would need memory of its own.
            process = spawn.Process(target=measure_memory, args=(*job, options, queue))
            process.start()
            memory = queue.get()
            process.join()
        entries.append(
            {
                "name": name,
                "how": mode,
                "params": updates[job].parameters,
                "ms": 1e3 * medians[job],
                "times_transformer_pp": medians[job] / medians["Transformer++", mode],
                "memory_mib": memory,
            }
        )
        print(entries[-1], flush=True)
    result: dict[str, Any] = {"entries": entries, **vars(options), "device": DEVICE.type}
    if options.reference:
        reference_energy, package_energy = (
            f"{prefix}energy, 2 steps" for prefix in ("reference ", "")
        )
        result["reference_takes"] = {
            mode: medians[reference_energy, "eager"] / medians[package_energy, mode]
            for mode in ("eager", "compiled")
        }
        plain = medians["reference Transformer++", "eager"]
        result["reference_times_transformer_pp"] = medians[reference_energy, "eager"] / plain
        result["reference"] = "github.com/alexiglad/EBT"
    result["command"] = command_line("language_speed").replace(options.reference or "\n", "EBT")
    store_json("language_speed", result)


if __name__ == "__main__":
    main()
