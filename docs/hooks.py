"""Hooks of the documentation's website.

Links that leave the documentation, to a file of the repository, become plain text: the website does
not have that file. A link to a file that does not exist ends the build.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")
HELP = re.compile(r"<!-- help: ([\w.]+) -->")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace links that leave the documentation, and ``<!-- help: MODULE -->`` by a help text."""
    folder = Path(page.file.abs_src_path).parent

    def replace_link(match: re.Match[str]) -> str:
        text, target = match[1], (folder / match[2]).resolve()
        if not target.exists():
            raise SystemExit(f"{page.file.src_path}: {match[2]} does not exist.")
        is_page = target.suffix in (".md", ".ipynb") and target.is_relative_to(DOCS)
        return match[0] if is_page or target.is_relative_to(DOCS / "assets") else text

    return HELP.sub(help_text, LINK.sub(replace_link, markdown))


def help_text(match: re.Match[str]) -> str:
    """Return the help of a command as a block of text."""
    command = [sys.executable, "-m", match[1], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return f"```text\n{done.stdout.strip()}\n```"
