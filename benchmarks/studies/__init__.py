"""All studies, by their name in ``python -m benchmarks.run study=NAME``."""

from __future__ import annotations

from benchmarks.studies import control_loop, images, push_t, robots, text, video
from benchmarks.study import Study

STUDIES: dict[str, Study] = {
    **push_t.STUDIES,
    **robots.STUDIES,
    **control_loop.STUDIES,
    **text.STUDIES,
    **images.STUDIES,
    **video.STUDIES,
}
