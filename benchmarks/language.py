"""Language models compared: ``python -m benchmarks.language [corpus=wikitext2] [parallel=2]``.

Settings: corpus (tinyshakespeare or wikitext2), seeds (3), folder, parallel. Trains the energy
language model by both recipes and with a shallow guess stream, the refiner and Transformer++, all
on the same tokens, and evaluates them on held-out text, those of WikiText-2 on other texts, too:
perplexity, thinking longer and wider. Writes ``docs/results/language_CORPUS.json``. It may be
repeated after a kill; on two cores it takes an hour.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.runs import entry_of_runs, train_all
from benchmarks.settings import DEVICE, command, settings, store
from ebt_policy.data.questions import QUESTIONS
from ebt_policy.language import evaluate_language

SIZE = ["size.width=128", "size.heads=4", "size.layers=4"]
UPDATES = ["train.minutes=null", "train.steps=2000", "train.lr=1e-3"]
CORPORA = {
    # nanoGPT's setting for a CPU, which publishes a validation loss of 1.88.
    "tinyshakespeare": ["task.tokenizer=char", "task.context=64", "train.batch_size=12", *SIZE],
    "wikitext2": [
        "task.vocab_size=1024", "task.context=64", "train.batch_size=16", "size=xs",
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


def main() -> None:
    given = settings(corpus="tinyshakespeare", seeds=3, parallel=2, folder="runs/language")
    if given.corpus not in CORPORA:
        raise SystemExit(f"error: corpus must be one of {', '.join(CORPORA)}.")
    folder = Path(given.folder) / given.corpus
    how = ["task=text", f"task.corpus={given.corpus}", *CORPORA[given.corpus], *UPDATES]
    runs = {name: [*how, *model] for name, model in MODELS.items()}
    train_all(runs, range(given.seeds), folder, given.parallel)
    results: dict[str, Any] = {}
    for corpus in [None, *OTHER_TEXTS[given.corpus]]:
        results[corpus or given.corpus] = evaluate_language(
            [str(folder / entry_of_runs(name)) for name in MODELS],
            corpus=corpus,
            output=folder / "evaluation" / (corpus or given.corpus),
            device=DEVICE,
            command=command("language"),
        )
    store(f"language_{given.corpus}.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
