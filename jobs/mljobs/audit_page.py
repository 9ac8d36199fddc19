"""The audit as one HTML page for a reviewer: no scripts, nothing loaded from elsewhere.

Called by audit. It shows the same numbers as `report.json`: the test metrics beside their gates,
the group differences beside their bounds, and each group's rates with intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from mljobs.tasks import Objective

STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #d8dee4 }
td.number { text-align: right; font-variant-numeric: tabular-nums }
.notice { border-left: 4px solid #b42318; padding: .25rem .75rem }
.pass { color: #1a7f37 } .fail { color: #b42318; font-weight: 600 } .muted { color: #656d76 }
svg text { font: 12px system-ui, sans-serif; fill: #1b1f24 }
"""
BAR_WIDTH: Final = 420
LABEL_WIDTH: Final = 190
ROW_HEIGHT: Final = 26
COLOURS: Final = ("#4878a8", "#6a9f58", "#c9744f")


def render(version: str, metrics: Mapping[str, float], report: Mapping[str, Any], objective: Objective) -> str:
    """The page.

    Args:
        version: Name of the ModelVersion.
        metrics: Test metrics.
        report: The audit's full report.
        objective: What was learned.
    """
    title = f"Audit of {escape(version)}"
    parts = [
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{title}</title><style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>{_sample_notice(report['sample'])}",
        (f"<p>{report['testRows']:,} test rows that the training never saw. {escape(objective.sentence)}</p>"),
        "<h2>Metrics</h2>",
        _metrics_table(metrics, report["gates"]),
        "<h2>Differences between groups</h2>",
        _differences(report, objective.fairness),
    ]
    for attribute, result in report["attributes"].items():
        parts.append(f"<h2>By {escape(attribute)}</h2>")
        parts += [
            (_chart if objective.shares else _listed)(result, rate, title, COLOURS[i % len(COLOURS)])
            for i, (rate, title) in enumerate(objective.titles.items())
        ]
    return "\n".join([*parts, "</body></html>"])


def _sample_notice(sample: Mapping[str, int]) -> str:
    """What a reviewer must know before any number: that these are not all rows. Nothing where they are."""
    if sample["rows"] == sample["of"]:
        return ""
    return (
        f"<p class=notice><b>A sample:</b> trained and tested on {sample['rows']:,} of the data's {sample['of']:,} rows. "
        "On all of them the numbers below would be others.</p>"
    )


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    return f"<table><tr>{cells}</tr>{''.join(rows)}</table>"


def _verdict(*, passed: bool) -> str:
    return "<td class=pass>within</td>" if passed else "<td class=fail>outside</td>"


def _metrics_table(metrics: Mapping[str, float], gates: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for name, value in metrics.items():
        bounds = [gate for gate in gates if gate["metric"] == name]
        low = max((gate["min"] for gate in bounds if gate["min"] is not None), default=None)
        high = min((gate["max"] for gate in bounds if gate["max"] is not None), default=None)
        wanted = " and ".join(
            text for text in (f"≥ {low}" if low is not None else "", f"≤ {high}" if high is not None else "") if text
        )
        passed = (low is None or value >= low) and (high is None or value <= high)
        verdict = _verdict(passed=passed) if wanted else "<td></td>"
        rows.append(f"<tr><td>{escape(name)}</td><td class=number>{value:.4f}</td><td>{wanted}</td>{verdict}</tr>")
    return _table(["Metric", "Value", "Gate", ""], rows)


def _differences(report: Mapping[str, Any], metrics: Sequence[str]) -> str:
    if not report["attributes"]:
        return (
            "<p class=notice>No groups were compared: the specification names none. Name the columns that divide people in "
            "<code>spec.data.sensitiveAttributes</code>, and this page shows how differently they are treated.</p>"
        )
    rows = []
    for attribute, result in report["attributes"].items():
        for metric in metrics:
            bound, interval = report["bounds"].get(metric), result["differences"].get(metric)
            wanted = "" if bound is None else f"≤ {bound}"
            if interval is None:  # too few large groups: the gate refuses it like a value above the bound
                verdict = "<td></td>" if bound is None else _verdict(passed=False)
                rows.append(
                    f"<tr><td>{escape(attribute)}</td><td>{escape(metric)}</td><td class=muted colspan=2>not assessed</td>"
                    f"<td>{wanted}</td>{verdict}</tr>"
                )
                continue
            verdict = "<td></td>" if bound is None else _verdict(passed=interval["value"] <= bound)
            rows.append(
                f"<tr><td>{escape(attribute)}</td><td>{escape(metric)}</td><td class=number>{interval['value']:.4f}</td>"
                f"<td class=muted>{interval['low']:.4f} to {interval['high']:.4f}</td>"
                f"<td>{wanted}</td>{verdict}</tr>"
            )
    told = (
        f"<p>Intervals at {report['confidence']:.0%} (bootstrap). A rate is compared among groups in which at least "
        f"{report['minGroupSize']} rows count for it.</p>"
    )
    return told + _table(["Attribute", "Difference", "Value", "Interval", "Bound", ""], rows)


def _listed(result: Mapping[str, Any], rate: str, title: str, _colour: str) -> str:
    """A table, of rates that have no common scale."""
    rows = [
        f"<tr><td>{escape(name)} ({group['count']:,})</td><td class=number>{group[rate]['value']:.6g}</td>"
        f"<td class=muted>{group[rate]['low']:.6g} to {group[rate]['high']:.6g}</td></tr>"
        for name, group in result["groups"].items()
    ]
    return f"<h3>{escape(title)}</h3>{_table(['Group', 'Value', 'Interval'], rows)}"


def _chart(result: Mapping[str, Any], rate: str, title: str, colour: str) -> str:
    """Horizontal bars with whiskers; groups too small to be compared are pale."""
    bars = []
    for i, (name, group) in enumerate(result["groups"].items()):
        middle = i * ROW_HEIGHT + ROW_HEIGHT / 2
        label = f"{escape(name)} ({group['denominators'][rate]:,})"
        bars.append(f"<text x='{LABEL_WIDTH - 8}' y='{middle + 4}' text-anchor='end'>{label}</text>")
        if (interval := group[rate]) is None:
            bars.append(f"<text x='{LABEL_WIDTH}' y='{middle + 4}'>no rows</text>")
            continue
        value, low, high = (LABEL_WIDTH + BAR_WIDTH * interval[key] for key in ("value", "low", "high"))
        opacity = 0.3 if rate in result["notAssessed"].get(name, ()) else 1
        bars.append(
            f"<rect x='{LABEL_WIDTH}' y='{middle - 8}' width='{value - LABEL_WIDTH:.1f}' height='16' "
            f"fill='{colour}' opacity='{opacity}'/>"
            f"<path d='M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8' stroke='#1b1f24'/>"
            f"<text x='{max(value, high) + 6:.1f}' y='{middle + 4}'>{interval['value']:.3f}</text>"
        )
    height = len(result["groups"]) * ROW_HEIGHT
    width = LABEL_WIDTH + BAR_WIDTH + 60
    return f"<h3>{escape(title)}</h3><svg width='{width}' height='{height}' role='img' aria-label='{escape(title)}'>{''.join(bars)}</svg>"
