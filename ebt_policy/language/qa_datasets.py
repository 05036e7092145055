"""Questions and answers as text, on which language models that learned other text are evaluated.

GSM8K (Cobbe et al. 2021), SQuAD 1.1 (Rajpurkar et al. 2016) and two tasks of BIG-Bench Hard
(Suzgun et al. 2022), in the words in which the EBT paper's code shows them to a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple


def _grade_school(raw: str) -> Iterator[tuple[str, str]]:
    for line in raw.splitlines():
        problem = json.loads(line)
        yield problem["question"], problem["answer"]


def _squad(raw: str) -> Iterator[tuple[str, str]]:
    for article in json.loads(raw)["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                yield f"{paragraph['context']} {entry['question']}", entry["answers"][0]["text"]


def _hard(raw: str) -> Iterator[tuple[str, str]]:
    for example in json.loads(raw)["examples"]:
        yield example["input"], example["target"]


class Questions(NamedTuple):
    """Where a set lies in its archive, and how its questions and answers are read."""

    archive: str
    member: str
    parse: Callable[[str], Iterator[tuple[str, str]]]

    def text(self, raw: str) -> str:
        """All of them, one after the other.

        Raises:
            KeyError, IndexError, ValueError: it is not what it should be.
        """
        pairs = self.parse(raw)
        return "\n\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in pairs)


QUESTIONS = {
    "gsm8k": Questions("gsm8k.zip", "gsm8k/test.jsonl", _grade_school),
    "squad": Questions("squad_dev_v1.1.zip", "squad/dev-v1.1.json", _squad),
    "dyck_languages": Questions("bbh.zip", "bbh/dyck_languages.json", _hard),
    "multistep_arithmetic": Questions("bbh.zip", "bbh/multistep_arithmetic_two.json", _hard),
}
