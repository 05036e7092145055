"""All studies, by their name in ``python -m benchmarks.run study=NAME``."""

from __future__ import annotations

from benchmarks.studies import (
    arenas,
    control_loop,
    images,
    push_t,
    replication,
    robots,
    text,
    video,
)
from benchmarks.study import Study

STUDIES: dict[str, Study] = {
    **push_t.STUDIES,
    **arenas.STUDIES,
    **replication.STUDIES,
    **robots.STUDIES,
    **control_loop.STUDIES,
    **text.STUDIES,
    **images.STUDIES,
    **video.STUDIES,
}
