"""Tables of docs/benchmarks.md; called by the benchmarks, which own one marked block each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs/benchmarks.md"


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with its columns aligned."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def publish(name: str, command: str, body: str, document: Path = DOCUMENT) -> None:
    """Replaces the block `name` of the document by the command and its result.

    Raises:
        ValueError: The document has no ``<!-- name -->`` … ``<!-- /name -->`` block.
    """
    text = document.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(text):
        msg = f"{document.name} has no block <!-- {name} --> … <!-- /{name} -->; add it where the table belongs"
        raise ValueError(msg)
    block = f"`{command}`\n\n{body}\n"
    document.write_text(pattern.sub(lambda m: m[1] + block + m[2], text), encoding="utf-8")
