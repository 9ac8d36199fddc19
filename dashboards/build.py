"""Writes dashboards/models.json, the Grafana dashboard of models, stages and the operator.

Called by `make manifests`, which also copies the result into the chart; tests/unit/test_dashboards.py
fails while the file is not what comes out here. It exists because a dashboard's JSON says everything
a dozen times, and nobody can review that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders import bargauge, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common, units
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

OUTPUT: Final = Path(__file__).parent / "models.json"
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
CHOSEN: Final = 'namespace=~"$namespace",model=~"$model"'
MODEL: Final = "{{namespace}}/{{model}}"

Panel = bargauge.Panel | stat.Panel | statetimeline.Panel | timeseries.Panel


def condition(kind: str, status: str) -> str:
    """1 for each chosen model whose condition has this status, else 0; whatever pod of the operator says so."""
    return f'max by (namespace, model) (mlplatform_model_condition{{{CHOSEN},type="{kind}",status="{status}"}})'


def per_minute(metric: str, *labels: str) -> str:
    """How fast a counter rises."""
    return f"sum by ({', '.join(labels)}) (rate({metric}[$__rate_interval])) * 60"


def quantile(share: float, histogram: str, label: str) -> str:
    """A quantile of a histogram's buckets, by one label."""
    return f"histogram_quantile({share}, sum by (le, {label}) ({histogram}))"


def counting(red: str = "") -> stat.Panel:
    """One number; in this colour from 1 on."""
    steps = [Threshold(color="green" if red else "text")]
    if red:
        steps.append(Threshold(value=1, color=red))
    colours = dashboard.ThresholdsConfig().steps(steps)
    return stat.Panel().thresholds(colours).graph_mode(common.BigValueGraphMode.NONE).height(4).span(6)


def lines() -> timeseries.Panel:
    """Lines over time, two panels beside each other."""
    return timeseries.Panel().height(8).span(12).fill_opacity(10)


def filled(panel: Panel, title: str, description: str, unit: str, *queries: tuple[str, str]) -> Panel:
    """A panel with what every panel has; each query is an expression and the legend of its series."""
    panel.title(title).description(description).unit(unit).datasource(SOURCE)
    for ref, (expression, legend) in zip("ABC", queries, strict=False):
        query = prometheus.Dataquery().ref_id(ref).datasource(SOURCE).expr(expression).legend_format(legend)
        # A number or a bar is the value of now; only what has a time axis needs every value.
        panel.with_target(query.instant() if isinstance(panel, stat.Panel | bargauge.Panel) else query.range())
    return panel


def models() -> list[Panel]:
    """What serves, what does not, and what is on its way."""
    has_served = f"max by (namespace, model) (mlplatform_model_promoted{{{CHOSEN}}}) == 1"
    each = f'max by (namespace, model, type) (mlplatform_model_condition{{{{{CHOSEN},status="{{status}}"}}}})'
    states = {"1": ("True", "green"), "0": ("Unknown", "text"), "-1": ("False", "red")}
    mapping = ValueMap({value: ValueMappingResult(text=text, color=color) for value, (text, color) in states.items()})
    return [
        filled(
            counting(),
            "Serving",
            "Models with a version that was promoted and has a ready pod.",
            units.Short,
            (f"sum({condition('Serving', 'True')}) or vector(0)", ""),
        ),
        filled(
            counting("red"),
            "Not serving",
            "Models that have served and have no ready pod now; alert MLModelNotServing.",
            units.Short,
            (f"count(({condition('Serving', 'False')} == 1) and {has_served}) or vector(0)", ""),
        ),
        filled(
            counting("orange"),
            "Latest version failed",
            "Models whose latest version did not pass its pipeline; what served before goes on. Alert MLModelVersionFailed.",
            units.Short,
            (f"sum({condition('VersionReady', 'False')}) or vector(0)", ""),
        ),
        filled(
            counting("orange"),
            "Rollout failed",
            "Models whose latest version did not get the traffic. Alert MLModelRolloutFailed.",
            units.Short,
            (f"sum({condition('RolloutPassed', 'False')}) or vector(0)", ""),
        ),
        filled(
            statetimeline.Panel().height(10).span(24).mappings([mapping]).per_page(20),
            "Conditions",
            "Every condition of every model over time. True: reached. Unknown: not there yet. False: failed or blocked, "
            "and a person can act.",
            units.NoUnit,
            (f"{each.format(status='True')} - {each.format(status='False')}", f"{MODEL} {{{{type}}}}"),
        ),
        filled(
            lines().decimals(4).line_interpolation(common.LineInterpolation.STEP_AFTER),
            "Test metrics of the version that serves",
            "Measured on the test split by the audit of the version that has the traffic; a step is a promotion.",
            units.NoUnit,
            (f"max by (namespace, model, metric) (mlplatform_version_metric{{{CHOSEN}}})", f"{MODEL} {{{{metric}}}}"),
        ),
        filled(
            lines().min(0).max(100).line_interpolation(common.LineInterpolation.STEP_AFTER),
            "Traffic of the candidate",
            "Share of the requests that the version under rollout takes; 0 when no rollout is under way.",
            units.Percent,
            (f"max by (namespace, model) (mlplatform_rollout_weight{{{CHOSEN}}})", MODEL),
        ),
    ]


def stages() -> list[Panel]:
    """How long stages take, and how they end: of all models, for the metric names none.

    Stages are rare. Over their whole count, not a rate, so that the first one counts as well.
    """
    passed = 'mlplatform_stage_seconds_bucket{outcome="Succeeded"}'
    return [
        filled(
            bargauge.Panel().height(8).span(12).orientation(common.VizOrientation.HORIZONTAL).min(0),
            "Duration of stages",
            "Median and 90th percentile of the stages that succeeded since the operator started, restarts included, for "
            "all models.",
            units.Seconds,
            (quantile(0.5, passed, "stage"), "{{stage}} p50"),
            (quantile(0.9, passed, "stage"), "{{stage}} p90"),
        ),
        filled(
            lines().line_interpolation(common.LineInterpolation.STEP_AFTER).min(0),
            "Stages that ended",
            "By outcome, counted since the operator started, for all models. Failed includes gates that were missed.",
            units.Short,
            ("sum by (stage, outcome) (mlplatform_stage_seconds_count)", "{{stage}} {{outcome}}"),
        ),
    ]


def operator() -> list[Panel]:
    """Whether the operator keeps up and comes to rest."""
    passes = "rate(mlplatform_reconcile_seconds_bucket[$__rate_interval])"
    return [
        filled(
            lines().min(0),
            "Duration of a pass",
            "From looking at an object to the last write about it: median and 99th percentile by kind.",
            units.Seconds,
            (quantile(0.5, passes, "kind"), "{{kind}} p50"),
            (quantile(0.99, passes, "kind"), "{{kind}} p99"),
        ),
        filled(
            lines().min(0),
            "Passes",
            "Looks at objects per minute; each change wakes it, and each object is looked at every ten minutes anyhow.",
            units.OpsPerMinute,
            (per_minute("mlplatform_reconcile_seconds_count", "kind"), "{{kind}}"),
        ),
        filled(
            lines().min(0),
            "Errors",
            "Passes that ended in an error, per minute. One object that cannot be mended makes one a minute; conflicts "
            "come and go. Alert MLPlatformReconcileErrors.",
            units.OpsPerMinute,
            (per_minute("mlplatform_reconcile_errors_total", "kind", "error"), "{{kind}} {{error}}"),
        ),
        filled(
            lines().min(0),
            "Writes",
            "Requests that change something, per minute; an operator with nothing to do sends none. Alert "
            "MLPlatformWritesWithoutEnd.",
            units.WritesPerMinute,
            (per_minute("mlplatform_api_writes_total", "kind", "verb"), "{{kind}} {{verb}}"),
        ),
    ]


def chooser(name: str, query: str) -> dashboard.QueryVariable:
    """A variable that offers a label's values, all of them at first."""
    return (
        dashboard.QueryVariable(name)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all", selected=True))
    )


def build() -> Dashboard:
    """The dashboard."""
    whole = (
        dashboard.Dashboard("mlplatform: models")
        .uid("mlplatform-models")
        .description("MLModels, their pipelines and the operator that keeps them.")
        .tags(["mlplatform"])
        .timezone("browser")
        .time("now-6h", "now")
        .refresh("1m")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
        .with_variable(chooser("namespace", "label_values(mlplatform_model_condition, namespace)"))
        .with_variable(chooser("model", 'label_values(mlplatform_model_condition{namespace=~"$namespace"}, model)'))
    )
    for title, panels in (("Models", models()), ("Stages", stages()), ("Operator", operator())):
        whole.with_row(dashboard.Row(title))
        for panel in panels:
            whole.with_panel(panel)
    found = whole.build()
    for number, placed in enumerate(found.panels or (), start=1):
        placed.id_val = number
    return found


def text() -> str:
    """What the file must have in it."""
    return json.dumps(build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(text())
