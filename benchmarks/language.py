"""Language models compared: ``python -m benchmarks.language [corpus=wikitext2] [parallel=2]``.

Settings: corpus (tinyshakespeare or wikitext2), seeds (3), folder, parallel. Trains the energy
language model by both recipes and with a shallow guess stream, the refiner and Transformer++, all
on the same tokens, and evaluates them on held-out text, those of WikiText-2 on other texts, too:
perplexity, thinking longer and wider. Writes ``docs/results/language_CORPUS.json``. It may be
repeated after a kill; on two cores it takes an hour.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.runs import entry_of_runs, train_all
from benchmarks.settings import DEVICE, command, settings, store
from ebt_policy.evaluation.tables import format_estimate, format_interval, markdown
from ebt_policy.language.evaluate import evaluate_language
from ebt_policy.language.qa_datasets import QUESTIONS

SIZE = ["size.width=128", "size.heads=4", "size.layers=4"]
UPDATES = ["train.minutes=null", "train.lr=1e-3"]
CORPORA = {
    # nanoGPT's setting for a CPU, which publishes a validation loss of 1.88.
    "tinyshakespeare": [
        "task.tokenizer=char", "task.context=64", "train.batch_size=12", "train.steps=2000", *SIZE,
    ],
    "wikitext2": [
        "task.vocab_size=1024", "task.context=64", "train.batch_size=12", "train.steps=2000",
        "size=xs",
    ],
}  # fmt: skip
OTHER_TEXTS = {"tinyshakespeare": [], "wikitext2": ["tinyshakespeare", *QUESTIONS]}
MODELS = {
    "transformer_pp": ["model=transformer_pp"],
    "ebt": ["model=ebt"],
    "ebt_shallow": ["model=ebt", "model.guess_layers=1"],
    "refiner": ["model=refiner"],
    "ebt_s2": ["model=ebt", "objective=s2"],
}
HOW = {"ebt_s2": "@steps=3"}  # it learns two or three
ONCE = ("ebt_shallow",)  # what is asked on TinyShakespeare alone
NAMES = {
    "transformer_pp": "Transformer++",
    "ebt": "energy, 2 steps",
    "ebt_shallow": "energy, 2 steps, guesses through one block",
    "refiner": "refiner, 2 steps",
    "ebt_s2": "energy, System 2, 3 steps",
}


def _name(entry: str) -> str:
    return NAMES[entry.partition("-seed")[0]]


def quality(result: dict[str, Any], cost: dict[str, Any]) -> str:
    """Held-out loss of all models, the difference to Transformer++, and what an update costs."""
    times = {
        entry["name"]: entry["times_transformer_pp"]
        for entry in cost["entries"]
        if entry["how"] == "compiled"
    }
    first = result["entries"][0]["name"]
    less = {one["b"]: one for one in result["paired"] if one["a"] == first}
    rows = []
    for entry in result["entries"]:
        name, loss, perplexity = _name(entry["name"]), entry["loss"], entry["perplexity"]
        ahead = ""
        if one := less.get(entry["name"]):
            low, high = one["ci95"]
            ahead = format_interval(-one["diff"], (-high, -low), signed=True)
        rows.append(
            (
                name,
                f"{entry['params']:,}",
                format_estimate(loss),
                f"{perplexity['mean']:.2f}",
                ahead,
                f"{times[name]:.1f}x" if name in times else "",
            )
        )
    header = (
        "model", "parameters", "held-out loss, nats", "perplexity", "minus Transformer++'s, nats",
        "an update takes",
    )  # fmt: skip
    return markdown(header, rows, left=1)


def other_texts(results: dict[str, Any]) -> str:
    """Perplexity of all models on other texts than they learned from."""
    names = [entry["name"] for entry in next(iter(results.values()))["entries"]]
    rows = []
    for corpus, result in results.items():
        cells = (format_estimate(entry["perplexity"], 1) for entry in result["entries"])
        rows.append((corpus, *cells))
    return markdown(("perplexity", *map(_name, names)), rows, left=1)


def thinking(results: dict[str, Any], which: str = "ebt_s2") -> str:
    """What more steps and guesses make of a model's loss on several texts."""
    rows, header = [], ("text", "perplexity")
    for corpus, result in results.items():
        entry = next(e for e in result["entries"] if e["name"].startswith(f"{which}-seed"))
        found = entry["thinking"]
        steps = {f"{k} steps": found["longer"][k] for k in (1, 2, 4, 6, 12)}
        wide = {f"best of {one['candidates']}": one for one in found["wider"][1:]}
        wide["while the energy falls"] = found["adaptive"]
        header = ("text", f"perplexity, {found['steps']} steps", *steps, *wide)
        diffs = [one["against"] for one in (steps | wide).values()]
        cells = (format_interval(d["diff"], d["ci95"], signed=True) for d in diffs)
        rows.append((corpus, f"{math.exp(found['longer'][found['steps']]['mean']):.2f}", *cells))
    return markdown(header, rows, left=1)


def main() -> None:
    given = settings(corpus="tinyshakespeare", seeds=3, parallel=2, folder="runs/language")
    if given.corpus not in CORPORA:
        raise SystemExit(f"error: corpus must be one of {', '.join(CORPORA)}.")
    folder = Path(given.folder) / given.corpus
    how = ["task=text", f"task.corpus={given.corpus}", *CORPORA[given.corpus], *UPDATES]
    left_out = () if given.corpus == "tinyshakespeare" else ONCE
    runs = {name: [*how, *model] for name, model in MODELS.items() if name not in left_out}
    train_all(runs, range(given.seeds), folder, given.parallel)
    results: dict[str, Any] = {}
    for corpus in [None, *OTHER_TEXTS[given.corpus]]:
        results[corpus or given.corpus] = evaluate_language(
            [str(folder / entry_of_runs(name + HOW.get(name, ""))) for name in runs],
            corpus=corpus,
            output=folder / "evaluation" / (corpus or given.corpus),
            device=DEVICE,
            command=command("language"),
        )
    for result in results.values():
        for entry in result["entries"]:
            if found := (entry.get("thinking") or {}).get("energies"):
                del found["tokens"]  # that is the corpus's own text
    store(f"language_{given.corpus}.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
