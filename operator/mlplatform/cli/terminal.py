"""What goes to the terminal, and how: a console, tables, views as they change.

Called by the commands of this package. Colour, pictures and widths are settled here; what there is to say, elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table

from mlplatform import api
from mlplatform.cli import render
from mlplatform.cli.view import ModelView

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_TIMEOUT: Final = 124
EXIT_INTERRUPTED: Final = 130

Tell = Callable[[ModelView | None], None]
"""Shows a view; None once the model is gone."""

_PIPE_WIDTH: Final = 1000
"""Columns of a table that goes into a pipe: more than any row has."""


class PipeConsole(Console):
    """A console that leaves it to `main` what a reader that has gone means; rich itself would exit with 1."""

    def on_broken_pipe(self) -> NoReturn:
        """Passes the error on.

        Raises:
            BrokenPipeError: Always.
        """
        raise BrokenPipeError


def console(stream: Any, *, color: bool) -> Console:
    """A console on `stream`; without colour when asked, when NO_COLOR is set or without a terminal."""
    plain = not color or bool(os.environ.get("NO_COLOR"))
    return PipeConsole(file=stream, no_color=plain, highlight=False, emoji=False)


def now() -> datetime:
    """The wall clock; nothing below this module reads it."""
    return datetime.now(UTC)


def line(out: Console, text: str) -> None:
    """One line with the time, never wrapped."""
    out.print(f"{now():%H:%M:%S}  {' '.join(text.split())}", markup=False, soft_wrap=True)


def dump(value: Any, form: str, out: Console) -> None:
    """A value as ``json`` or ``yaml``."""
    text = json.dumps(value, indent=2)
    # YAML has no enumerations; JSON has made them strings.
    out.file.write(text + "\n" if form == "json" else yaml.safe_dump(json.loads(text), sort_keys=False))
    out.file.flush()  # Here, where a reader that has gone is noticed, and not when the interpreter ends.


def say(out: Console, text: str) -> None:
    """One line, never wrapped: it may be cut and pasted."""
    out.print(text, markup=False, soft_wrap=True)


def print_table(table: Table, out: Console) -> None:
    """Prints a table; whole where nobody looks at its edge: into pipes and files."""
    whole = out if out.is_terminal else PipeConsole(file=out.file, width=_PIPE_WIDTH, no_color=True)
    whole.print(table)


def text_lines(out: Console) -> Tell:
    """One line a change, each with the time."""
    before: dict[str, str] = {}

    def tell(view: ModelView | None) -> None:
        nonlocal before
        if view is None:
            if before:
                line(out, "deleted")
            before = {}
            return
        after = render.facts(view)
        for changed in render.changes(before, after):
            line(out, changed)
        before = after

    return tell


def json_lines(out: Console) -> Tell:
    """One JSON object a change; only what really changed counts, not running durations."""
    before: dict[str, str] = {}

    def tell(view: ModelView | None) -> None:
        nonlocal before
        if view is None:
            return
        after = render.facts(view)
        if after != before:
            text = json.dumps({"time": now().isoformat(timespec="seconds"), **api.encode(view)}, separators=(",", ":"))
            out.file.write(text + "\n")
            out.file.flush()
        before = after

    return tell


@contextmanager
def teller(out: Console, output: str | None, *, color: bool) -> Iterator[tuple[Tell, bool]]:
    """The way to show a view as it changes, and whether it is a picture that wants redrawing while nothing changes.

    Args:
        out: Where to.
        output: ``json`` for one object a line.
        color: Whether the user wants colour; a picture is for terminals with colour, lines are for everything else.
    """
    if output == "json":
        yield json_lines(out), False
    elif out.is_terminal and color and not os.environ.get("NO_COLOR"):
        signs = render.signs_for(out)
        # The last picture stays on the screen.
        with Live(console=out, auto_refresh=False, vertical_overflow="visible") as live:
            yield lambda view: live.update(render.frame(view, signs), refresh=True) if view is not None else None, True
    else:
        yield text_lines(out), False
