"""The scaling studies of docs/scaling.md, which use ``ebt_policy.scaling``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from benchmarks.study import StudyContext
from ebt_policy.scaling import scaling


@dataclass(frozen=True)
class ScalingStudy:
    """Measurement of held-out loss along one axis on WikiText-2.

    Attributes:
        axis: name of the axis, see `ebt_policy.language.scaling.AXES`.
    """

    axis: str

    def arguments(self, options: SimpleNamespace) -> list[str]:
        """Return the arguments of ``ebt_policy.scaling``."""
        parallel = [
            "hydra/launcher=joblib", f"hydra.launcher.n_jobs={options.parallel}",
        ]  # fmt: skip
        return [
            f"axis={self.axis}", "task.corpus=wikitext2", f"seeds={options.seeds}",
            f"folder={options.folder}", *(parallel if options.parallel > 1 else []),
            *shlex.split(options.overrides),
        ]  # fmt: skip

    def __call__(self, context: StudyContext) -> dict[str, Any]:
        return {**scaling(self.arguments(context.options)), "command": context.command}
