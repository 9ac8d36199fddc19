"""What the person sees: one line a step, the table at the end, a failure's report.

Called by `steps.py` and `__main__.py`. Colours only on a terminal and without NO_COLOR
(https://no-color.org).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TextIO

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


def colours_wanted(environ: Mapping[str, str], *, is_terminal: bool) -> bool:
    """Whether escape sequences may be written."""
    return is_terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def seconds(value: float) -> str:
    """``0.4 s``, ``12 s``, ``4 min 05 s``."""
    if value < 10:  # noqa: PLR2004 - tenths matter below ten seconds only
        return f"{value:.1f} s"
    if value < 60:  # noqa: PLR2004 - a minute
        return f"{value:.0f} s"
    return f"{int(value) // 60} min {int(value) % 60:02d} s"


def tail(text: str, lines: int = 20) -> list[str]:
    """The last lines that are not blank; of a progress line only what would still show."""
    kept = [line.rpartition("\r")[2] for line in text.rstrip("\r\n").split("\n")]
    return [line for line in kept if line.strip()][-lines:]


def table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


class Console:
    """Writes whole lines, from any thread."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._colours = colours_wanted(os.environ, is_terminal=self._out.isatty())
        self._lock = threading.Lock()

    def paint(self, text: str, *styles: str) -> str:
        """``text`` in the styles, when colours are wanted."""
        if not self._colours:
            return text
        return f"\033[{';'.join(_CODES[style] for style in styles)}m{text}\033[0m"

    def line(self, text: str = "") -> None:
        """One line."""
        with self._lock:
            print(text, file=self._out, flush=True)

    def started(self, name: str, why: str) -> None:
        """A step begins."""
        self.line(f"{self.paint('…', 'dim')} {self.paint(name, 'bold')}: {why}")

    def finished(self, name: str, note: str, duration: float) -> None:
        """A step ended well."""
        self.line(f"{self.paint('✓', 'green')} {name}: {note} {self.paint(f'({seconds(duration)})', 'dim')}")

    def problem(self, text: str) -> None:
        """Something failed."""
        self.line(f"{self.paint('✗', 'red')} {text}")
