"""Markdown tables and paragraphs on a terminal of any width, without truncated names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rich.console import Console

GAP = 2  # spaces between columns


def print_markdown(text: str, console: Console) -> None:
    """Print Markdown that consists of tables and paragraphs.

    A table that is too wide for the terminal is printed as one block for each row: the first cell,
    then the other cells with their headers.
    """
    for block in _blocks(text):
        if block[0].startswith("|"):
            header, _, *rows = [_cells(line) for line in block]
            for line in table_lines(header, rows, console.width):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(" ".join(block), markup=False, highlight=False)
        console.print()


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yield the lines of a table, aligned in columns if they fit into ``width`` characters."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    if sum(widths) + GAP * (len(widths) - 1) <= width:
        for row in (header, *rows):
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
            yield (" " * GAP).join(cells).rstrip()
        return
    for row in rows:
        yield row[0]
        line = ""
        for name, cell in zip(header[1:], row[1:], strict=True):
            if not cell:
                continue
            item = f"{name} {cell}".strip()
            if line and len(line) + GAP + len(item) > width:
                yield line
                line = ""
            line += f"{' ' * GAP}{item}"
        yield line


def _blocks(text: str) -> Iterator[list[str]]:
    """Yield the tables and paragraphs of a Markdown text as lists of lines."""
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        is_other = bool(block) and line.startswith("|") != block[0].startswith("|")
        if block and (is_other or not line.strip()):
            yield block
            block = []
        if line.strip():
            block.append(line.strip())


def _cells(line: str) -> list[str]:
    """Return the cells of a table row."""
    cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    return [cell.strip().replace("\\|", "|").replace("**", "") for cell in cells]
