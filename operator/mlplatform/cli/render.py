"""How `kubectl mlmodel` looks: a view model becomes rich text or plain lines.

Called by `mlplatform.cli.main`. Nothing here reads a clock, a cluster or the
terminal; a frame depends on its `ModelView` alone, so tests compare whole
frames at fixed widths. Every colour repeats what a word or a sign already
says: without colour nothing is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.box import ASCII, ROUNDED
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mlplatform.cli.view import (
    CandidateView,
    FailureView,
    FairnessView,
    GateView,
    ModelView,
    Outcome,
    StageView,
    State,
    TrafficView,
    VersionView,
    duration,
    leading,
    milliseconds,
    number,
    size,
)


@dataclass(frozen=True, slots=True)
class Signs:
    """The few signs of the live view."""

    states: dict[State, str]
    yes: str
    no: str
    full: str
    light: str
    below: str
    above: str
    arrow: str
    dot: str


UNICODE: Final = Signs(
    {"pending": "·", "running": "●", "succeeded": "✔", "failed": "✘", "unknown": "?"},
    *("✔", "✘", "█", "░", "≤", "≥", "→", "·"),
)
PLAIN: Final = Signs(
    {"pending": ".", "running": "*", "succeeded": "+", "failed": "x", "unknown": "?"},
    *("ok", "no", "#", "-", "<=", ">=", "->", "-"),
)

_STYLES: Final[dict[State, str]] = {
    "pending": "dim",
    "running": "bold cyan",
    "succeeded": "green",
    "failed": "bold red",
    "unknown": "bold yellow",
}
_OUTCOMES: Final = {
    Outcome.READY: "bold green",
    Outcome.FAILED: "bold red",
    Outcome.PROGRESSING: "bold cyan",
    Outcome.SUSPENDED: "bold yellow",
}
_BAR_WIDTH: Final = 30
_INDENT: Final = (0, 0, 0, 2)


def signs_for(console: Console) -> Signs:
    """Unicode where the terminal's encoding has it, else ASCII."""
    return UNICODE if console.encoding.lower().startswith("utf") else PLAIN


def frame(view: ModelView, signs: Signs = UNICODE) -> RenderableType:
    """The whole live view of one model."""
    parts: list[RenderableType] = [_heading(view, signs)]
    if view.version is not None:
        parts += [Text(), _stages(view.version.stages, signs)]
        parts += _measurements(view.version, signs)
    if view.traffic is not None:
        parts += [_title("Traffic"), Padding(_traffic(view.traffic, signs), _INDENT, expand=False)]
    if view.url and view.traffic is not None:
        parts += [_title("URL"), Padding(Text(view.url, no_wrap=True, overflow="fold"), _INDENT, expand=False)]
    if view.failure is not None:
        parts += [Text(), _failure(view, view.failure, signs)]
    elif view.outcome is not Outcome.READY and view.message:
        parts += [Text(), Text(view.message)]
    return Group(*parts)


def _title(text: str) -> RenderableType:
    return Padding(Text(text, style="bold"), (1, 0, 0, 0), expand=False)


def _heading(view: ModelView, signs: Signs) -> Text:
    heading = Text()
    heading.append(view.name, style="bold")
    heading.append(f"  {view.namespace}", style="dim")
    if view.version is not None:
        heading.append(f" {signs.dot} v{view.version.sequence} {view.version.name}", style="dim")
    heading.append("  ")
    heading.append(view.outcome.value, style=_OUTCOMES[view.outcome])
    if view.outcome is Outcome.PROGRESSING and view.stage:
        heading.append(f": {view.stage}", style="cyan")
    return heading


def _grid(*columns: str) -> Table:
    """A table without lines; each column is `l` or `r`, `+` lets it wrap."""
    grid = Table.grid(padding=(0, 2))
    for column in columns:
        grid.add_column(justify="right" if column[0] == "r" else "left", no_wrap="+" not in column, overflow="fold")
    return grid


def _stages(stages: Sequence[StageView], signs: Signs) -> RenderableType:
    grid = _grid("l", "l", "r", "l+")
    for stage in stages:
        style = _STYLES[stage.state]
        words = stage.summary or ("" if stage.state in {"pending", "succeeded"} else stage.state)
        grid.add_row(
            Text(signs.states[stage.state], style=style),
            Text(stage.name, style=style if stage.state != "succeeded" else ""),
            Text(duration(stage.seconds)),
            Text(words, style="dim" if stage.state == "pending" else ""),
        )
    return Padding(grid, _INDENT, expand=False)


def _measurements(version: VersionView, signs: Signs) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if version.metrics:
        parts += [_title("Test metrics"), Padding(_metrics(version, signs), _INDENT, expand=False)]
    if version.fairness:
        parts += [_title("Fairness"), Padding(_fairness(version.fairness, signs), _INDENT, expand=False)]
        if version.not_assessed:
            words = f"too few rows to assess: {', '.join(version.not_assessed)}"
            parts.append(Padding(Text(words, style="dim"), _INDENT, expand=False))
    if version.candidates:
        parts += [_title("Candidates"), Padding(_candidates(version.candidates, signs), _INDENT, expand=False)]
    return parts


def _metrics(version: VersionView, signs: Signs) -> RenderableType:
    gated = {gate.metric for gate in version.gates}
    rest = "  ".join(f"{name} {number(value)}" for name, value in sorted(version.metrics.items()) if name not in gated)
    grid = _grid("l", "r", "l")
    for gate in version.gates:
        grid.add_row(
            gate.metric,
            number(gate.value) if gate.value is not None else "?",
            _verdict(gate.passed, _bound(gate, signs), signs),
        )
    return Group(grid, Text(rest, style="dim")) if rest else grid


def _bound(gate: GateView | FairnessView, signs: Signs) -> str:
    if isinstance(gate, FairnessView):
        return f"{signs.below} {gate.bound:g}" if gate.bound is not None else ""
    words = [f"{signs.above} {gate.min:g}"] if gate.min is not None else []
    words += [f"{signs.below} {gate.max:g}"] if gate.max is not None else []
    return " and ".join(words)


def _verdict(passed: bool | None, words: str, signs: Signs) -> Text:  # noqa: FBT001  a verdict is a boolean
    if passed is None:
        return Text(words, style="dim")
    return Text(f"{words} {signs.yes if passed else signs.no}", style="green" if passed else "bold red")


def _fairness(rows: Sequence[FairnessView], signs: Signs) -> RenderableType:
    grid = _grid("l+", "l", "r", "l", "l")
    for row in rows:
        interval = f"[{row.low:.3f}, {row.high:.3f}]" if row.low is not None and row.high is not None else ""
        grid.add_row(
            row.metric.replace("_", " "),
            row.attribute,
            f"{row.value:.3f}",
            Text(interval, style="dim"),
            _verdict(row.passed, _bound(row, signs), signs),
        )
    return grid


def _candidates(rows: Sequence[CandidateView], signs: Signs) -> RenderableType:
    metric = next((name for name in leading(rows[0].metrics) if all(name in row.metrics for row in rows)), "")
    grid = _grid("l", "l", "r", "r", "r", "r", "l+")
    grid.add_row("", "", "size", "p50 ms", "p99 ms", metric, "", style="dim")
    for row in rows:
        style = "bold" if row.selected else ("dim" if not row.passed else "")
        grid.add_row(
            signs.arrow if row.selected else " ",
            row.name,
            size(row.size_bytes),
            f"{row.latency_p50_ms:.3g}",
            f"{row.latency_p99_ms:.3g}",
            number(row.metrics[metric]) if metric else "",
            "ships" if row.selected else row.reason,
            style=style,
        )
    return grid


def _traffic(traffic: TrafficView, signs: Signs) -> Text:
    down = f"{traffic.stable} has no ready pod" if traffic.trouble else ""
    if not traffic.candidate:
        whole = (signs.light * _BAR_WIDTH, "bold red") if down else (signs.full * _BAR_WIDTH, "green")
        return Text.assemble(whole, f"  {down or f'{traffic.stable} 100 %'}")
    share = round(traffic.weight * _BAR_WIDTH / 100)
    if 0 < traffic.weight < 100:  # noqa: PLR2004  percent
        share = min(max(share, 1), _BAR_WIDTH - 1)
    if not traffic.stable:
        bar = Text.assemble((signs.light * _BAR_WIDTH, "dim"), f"  {traffic.candidate} is the first version")
    else:
        bar = Text.assemble(
            (signs.full * (_BAR_WIDTH - share), "bold red" if down else "green"),
            (signs.light * share, "bold magenta"),
            f"  {traffic.stable} {100 - traffic.weight} % {signs.arrow} ",
            (f"{traffic.candidate} {traffic.weight} %", "bold magenta"),
        )
    notes = [f"step {traffic.step} of {traffic.steps}"] if traffic.steps and traffic.stable else []
    notes += [down] if down else []
    notes += [f"done in about {duration(traffic.remaining_seconds)}"] if traffic.remaining_seconds else []
    return bar.append(f"  ({', '.join(notes)})" if notes else "", style="dim")


def _failure(view: ModelView, failure: FailureView, signs: Signs) -> RenderableType:
    """A red box for what has failed, a yellow one for what is tried again or waits."""
    final = view.outcome is Outcome.FAILED
    color = "red" if final else "yellow"
    grid = _grid("l", "l+")
    grid.add_row(Text("Cause", style="bold"), Text(failure.message))
    if failure.next_action:
        grid.add_row(Text("Next", style="bold"), Text(failure.next_action, style="bold yellow"))
    if failure.pod:
        code = f" (exit code {failure.exit_code})" if failure.exit_code is not None else ""
        grid.add_row(Text("Pod", style="bold"), Text(f"{failure.pod}{code}"))
    if failure.last_log:
        grid.add_row(Text("Log", style="bold"), Text(failure.last_log.strip(), style="dim"))
    if serving := still_serving(view):
        down = view.traffic is not None and view.traffic.trouble
        grid.add_row(Text("Serving", style="bold"), Text(serving, style="bold red" if down else "green"))
    title = Text(f"{'' if final else 'held up: '}{failure.reason}{_where(failure)}", style=f"bold {color}")
    return Panel(grid, title=title, title_align="left", border_style=color, box=ROUNDED if signs is UNICODE else ASCII)


def _where(failure: FailureView) -> str:
    return f" in {failure.stage}" if failure.stage else ""


def still_serving(view: ModelView) -> str:
    """Says whether the stable version goes on, where a failure would make a reader worry."""
    traffic = view.traffic
    if traffic is None or not traffic.stable:
        return ""
    if traffic.trouble:
        return traffic.trouble
    return f"{traffic.stable} keeps serving all traffic" if not traffic.weight else f"{traffic.stable} keeps serving"


def facts(view: ModelView) -> dict[str, str]:
    """What a log should say of this moment: one line a fact, keyed so that only changes are printed.

    Nothing that merely grows with time (the duration of a running stage) is a fact.
    """
    return {
        **(_version_facts(view.version) if view.version else {}),
        **(_traffic_facts(view.traffic) if view.traffic else {}),
        **_outcome_facts(view),
    }


def _version_facts(version: VersionView) -> dict[str, str]:
    tag, key = f"v{version.sequence}", version.name
    stages = (s for s in version.stages if (s.state != "pending" or s.summary) and s.name != "rollout")
    return {
        f"{key}/version": f"{tag} is {version.name}",
        **{f"{key}/{stage.name}": _stage_fact(tag, stage) for stage in stages},
        **{f"{key}/fairness/{row.metric}/{row.attribute}": f"{tag} {_fairness_fact(row)}" for row in version.fairness},
        **{f"{key}/candidate/{row.name}": f"{tag} candidate {_candidate_fact(row)}" for row in version.candidates},
    }


def _traffic_facts(traffic: TrafficView) -> dict[str, str]:
    if not traffic.stable:
        return {}
    if not traffic.candidate:
        return {"traffic": f"traffic: {traffic.stable} {'has no ready pod' if traffic.trouble else '100 %'}"}
    shares = f"{traffic.stable} {100 - traffic.weight} %, {traffic.candidate} {traffic.weight} %"
    return {"traffic": f"traffic: {shares} (step {traffic.step} of {traffic.steps})"}


def _outcome_facts(view: ModelView) -> dict[str, str]:
    if view.failure is not None:
        word = "failed" if view.outcome is Outcome.FAILED else "held up"
        serving = still_serving(view)
        return {
            "outcome": f"{word}{_where(view.failure)}: {view.failure.reason}: {view.failure.message}",
            **({"next": f"next: {view.failure.next_action}"} if view.failure.next_action else {}),
            **({"serving": serving} if serving else {}),
        }
    if view.outcome is Outcome.READY:
        return {"outcome": f"ready: {view.url}" if view.url else "ready"}
    return {"outcome": f"{view.outcome.value.lower()}: {view.message}"} if view.message else {}


def _stage_fact(tag: str, stage: StageView) -> str:
    if stage.state == "running":
        return f"{tag} {stage.name} runs{f': {stage.summary}' if stage.summary else ''}"
    if stage.state in {"unknown", "pending"}:
        return f"{tag} {stage.name}: {stage.summary}"
    took = f" after {duration(stage.seconds)}" if stage.seconds is not None else ""
    summary = f": {stage.summary}" if stage.summary else ""
    return f"{tag} {stage.name} {stage.state}{took}{summary}"


def _candidate_fact(row: CandidateView) -> str:
    metric = next(iter(leading(row.metrics)), "")
    score = f", {metric} {number(row.metrics[metric])}" if metric else ""
    verdict = ", ships" if row.selected else f", not shipped: {row.reason}" if row.reason else ""
    latency = f"p50 {milliseconds(row.latency_p50_ms)}, p99 {milliseconds(row.latency_p99_ms)}"
    return f"{row.name}: {size(row.size_bytes)}, {latency}{score}{verdict}"


def _fairness_fact(row: FairnessView) -> str:
    bound = f" (bound {row.bound:g}, {'passed' if row.passed else 'exceeded'})" if row.bound is not None else ""
    return f"{row.metric} by {row.attribute} {row.value:.3f}{bound}"


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The lines of `after` that are new or say something else than before."""
    return [line for key, line in after.items() if before.get(key) != line]


def models_table(views: Sequence[ModelView], *, wide: bool, namespaces: bool) -> Table:
    """`status` without a name: one row a model."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    columns = [*(["NAMESPACE"] if namespaces else []), "NAME", "READY", "STAGE", "SERVING", "LATEST", "WEIGHT", "AGE"]
    columns += ["ROC_AUC", "URL", "MESSAGE"] if wide else []
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="fold")
    for view in views:
        traffic = view.traffic
        cells = [view.namespace] if namespaces else []
        cells += [
            view.name,
            {Outcome.READY: "True", Outcome.FAILED: "False"}.get(view.outcome, "Unknown"),
            view.failure.reason
            if view.failure and view.outcome is Outcome.FAILED
            else (view.stage or view.outcome.value),
            traffic.stable if traffic and traffic.stable else "-",
            f"v{view.version.sequence}" if view.version else "-",
            f"{traffic.weight if traffic.candidate else 100} %" if traffic else "-",
            duration(view.age_seconds),
        ]
        if wide:
            auc = view.version.metrics.get("roc_auc") if view.version else None
            cells += [number(auc) if auc is not None else "-", view.url or "-", view.message or "-"]
        table.add_row(*cells, style="red" if view.outcome is Outcome.FAILED else "")
    return table


def plain_table(*columns: str) -> Table:
    """A table without lines, as kubectl's are."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="fold")
    return table


def history_table(view: ModelView) -> Table:
    """`history`: one row a decision, newest first."""
    table = plain_table("TIME", "VERSION", "NAME", "DECISION", "REASON")
    table.add_column("MESSAGE", overflow="fold")
    styles = {"Promoted": "green", "RolledBack": "red", "Superseded": "yellow"}
    for entry in view.history:
        table.add_row(
            entry.time,
            f"v{entry.sequence}" if entry.sequence else "-",
            entry.version,
            Text(entry.decision, style=styles.get(entry.decision, "")),
            entry.reason,
            entry.message,
        )
    return table
