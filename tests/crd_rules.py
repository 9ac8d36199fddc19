"""What each rule of the CRDs (``x-kubernetes-validations``) refuses and what it lets through: one table, three judges.

Used by tests/apiserver/test_crds.py, where a real API server decides, and by tests/unit/test_crds_rules.py, where
`api.problems` does: `kubectl apply` and the Accepted condition must agree, word for word, and so must
`mlplatform.admission` (both test_admission.py). A rule without a row here fails test_crds_rules.py.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlplatform import api, contract

EXAMPLE = Path(__file__).parents[1] / "examples/adult-income/mlmodel.yaml"


@dataclass(frozen=True)
class Case:
    """A change to the example.

    Attributes:
        reason: Why it must end as it does.
        change: Dotted path in the rule's section → value; ``...`` takes the field out.
        before: For a rule about change: a change that is made first, and must be accepted.
    """

    reason: str
    change: Mapping[str, object]
    before: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        words: What the user reads when it is broken: the path and the message.
        refused: Cases that break this rule and no other.
        accepted: Their nearest neighbours that break none.
    """

    words: str
    refused: tuple[Case, ...]
    accepted: tuple[Case, ...]

    @property
    def section(self) -> str:
        """``spec`` or ``status``: where the paths of its cases begin."""
        return self.words.partition(":")[0].partition(".")[0]


PODS = ("serving.scheduling", "scheduling")
"""Sections about pods, which say the same."""

NO_METRICS: dict[str, object] = {"gates": ..., "training.earlyStopping.metric": ...}
"""Of the example, whose target is binary."""
NEITHER: dict[str, object] = {**NO_METRICS, "fairness": ...}
"""Nor bounds."""

LABELS: dict[str, object] = {"data.label": ..., "data.labels": ["a", "b"], **NEITHER}
"""Several of them."""


RANKING: dict[str, object] = {**NEITHER, "training.task": "ranking"}
"""The task of that name."""


def of_target(target: str) -> dict[str, object]:
    """A change to data of this target."""
    return {"data.label": ..., "data.labels": ["a", "b"]} if target == "multilabel" else {"data.target": target}


TEXTS: dict[str, object] = {"training.task": "causal-lm", **NEITHER, "data.target": ..., "data.positiveLabel": ...}
"""The example made one of texts that continue."""


RULES = [
    Rule(
        "spec.data: set label (the column to predict) or labels (the columns of a multilabel target), not both",
        refused=(
            Case("none is set", {"data.label": ...}),
            Case("both are set", {**NEITHER, "data.labels": ["a", "b"]}),
        ),
        accepted=(
            Case("several", LABELS),
            Case("several, which the target says, too", {**LABELS, "data.target": "multilabel"}),
        ),
    ),
    Rule(
        "spec.data.target: multilabel needs spec.data.labels, its columns, in place of spec.data.label",
        refused=(
            Case("one label", {**NEITHER, "data.target": "multilabel"}),
            Case("none", {**NEITHER, "data.target": "multilabel", "data.label": ...}),
        ),
        accepted=(Case("several", {**LABELS, "data.target": "multilabel"}),),
    ),
    Rule(
        "spec.data.target: of spec.data.labels it is multilabel; take it out, or name one column in label",
        refused=tuple(Case("of one", {**LABELS, "data.target": name}) for name in ("binary", "multiclass", "regression")),
        accepted=(Case("as they are", {**LABELS, "data.target": "auto"}),),
    ),
    Rule(
        "spec.data.labels: has prediction, latency_ms or model_version, which every answer has, or a name with |, which parts "
        "names there; rename the column",
        refused=tuple(
            Case("the answer could not be read", {**LABELS, "data.labels": ["a", name]})
            for name in ("prediction", "latency_ms", "model_version", "b|c")
        ),
        accepted=(Case("other names", {**LABELS, "data.labels": ["predictions", "b/c"]}),),
    ),
    Rule(
        "spec.data.split: validation + test must be less than 1 to leave rows for training; lower one of them",
        refused=(
            Case("no rows are left to train on", {"data.split": {"validation": 0.5, "test": 0.5}}),
            Case("a default takes part in the sum", {"data.split": {"validation": 0.85}}),
        ),
        accepted=(
            Case("a hundredth is left", {"data.split": {"validation": 0.5, "test": 0.49}}),
            Case("the defaults leave most", {"data.split": ...}),
        ),
    ),
    Rule(
        "spec.data.uri: with spec.data.dvc it is a path in that repository; write it without a scheme",
        refused=(Case("an address", {"data.dvc": {"repo": "https://git.example.com/data", "rev": "v1"}}),),
        accepted=(
            Case("a path", {"data.dvc": {"repo": "https://git.example.com/data", "rev": "v1"}, "data.uri": "adult/"}),
            Case("an address without a repository", {"data.uri": "s3://datasets/adult/"}),
        ),
    ),
    Rule(
        "spec.data.dvc.repo: holds a password, which all who may read the model would see; take it out",
        refused=(
            Case("one", {"data.dvc": {"repo": "https://me:secret@git.example.com/data", "rev": "v1"}, "data.uri": "adult/"}),
        ),
        accepted=(
            Case("a user", {"data.dvc": {"repo": "ssh://git@git.example.com:22/data", "rev": "v1"}, "data.uri": "adult/"}),
            Case("a port", {"data.dvc": {"repo": "https://git.example.com:8443/data", "rev": "v1"}, "data.uri": "adult/"}),
        ),
    ),
    Rule(
        "spec.data.split.by: set one of group, key and time; remove the others",
        refused=(
            Case("none is set", {"data.split": {"by": {}}}),
            Case("two are set", {"data.split": {"by": {"group": "sex", "key": ["age"]}}}),
        ),
        accepted=(
            Case("a group", {"data.split": {"by": {"group": "sex"}}}),
            Case("a key", {"data.split": {"by": {"key": ["age", "sex"]}}}),
        ),
    ),
    Rule(
        "spec.data.split.by.time: validation must be before test: exchange them, or move one",
        refused=(
            Case(
                "out of order",
                {"data.split": {"by": {"time": {"column": "day", "validation": "2024-02-01", "test": "2024-01-01"}}}},
            ),
            Case(
                "the same",
                {"data.split": {"by": {"time": {"column": "day", "validation": "2024-02-01", "test": "2024-02-01"}}}},
            ),
        ),
        accepted=(
            Case(
                "a day and a time of it",
                {"data.split": {"by": {"time": {"column": "day", "validation": "2024-02-01", "test": "2024-02-01T12:00"}}}},
            ),
        ),
    ),
    Rule(
        "spec.data.weight: is the label; name a column that says how much a row counts",
        refused=(Case("the label", {"data.weight": "income"}),),
        accepted=(Case("another column", {"data.weight": "fnlwgt"}),),
    ),
    Rule(
        "spec.data.columns: contains spec.data.weight, which is no feature; take it out",
        refused=(Case("it is among them", {"data.weight": "fnlwgt", "data.columns": {"fnlwgt": "ignore"}}),),
        accepted=(Case("others", {"data.weight": "fnlwgt", "data.columns": {"id": "ignore"}}),),
    ),
    Rule(
        "spec.data.sensitiveAttributes: contains the label, which cannot be audited against itself; take it out",
        refused=(
            Case("the label is among them", {"data.sensitiveAttributes": ["sex", "income"]}),
            Case("one of several", {**LABELS, "data.labels": ["a", "race"]}),
        ),
        accepted=(Case("other columns only", {"data.sensitiveAttributes": ["sex"]}),),
    ),
    Rule(
        "spec.data.columns: contains the label, which is no feature; take it out",
        refused=(
            Case("the label is among them", {"data.columns": {"income": "use"}}),
            Case("one of several", {**LABELS, "data.columns": {"b": "ignore"}}),
        ),
        accepted=(Case("other columns only", {"data.columns": {"fnlwgt": "ignore", "age": "use"}}),),
    ),
    Rule(
        "spec.fairness.metrics: needs spec.data.sensitiveAttributes, the columns to compare groups by",
        refused=(
            Case("bounds without groups compare nothing", {"data.sensitiveAttributes": ...}),
            Case("an empty list has no groups either", {"data.sensitiveAttributes": []}),
        ),
        accepted=(
            Case("neither bounds nor groups", {"data.sensitiveAttributes": ..., "fairness": ...}),
            Case("no bounds in the map, no groups", {"data.sensitiveAttributes": [], "fairness.metrics": {}}),
            Case("groups that are only reported", {"fairness": {"minGroupSize": 10}}),
        ),
    ),
    Rule(
        "spec.fairness.metrics: unknown metric; known: demographic_parity_difference, equalized_odds_difference, "
        "accuracy_difference, mean_prediction_difference, mean_absolute_error_difference",
        refused=(Case("a misspelt bound would hold nothing back", {"fairness.metrics": {"equal_odds_difference": 0.1}}),),
        accepted=(Case("one of the two", {"fairness.metrics": {"equalized_odds_difference": 0.1}}),),
    ),
    Rule(
        "spec.gates: a built-in task reports no such metric; it reports roc_auc, average_precision, accuracy, "
        "balanced_accuracy, f1, log_loss, brier_score, macro_f1, micro_f1, hamming_loss, r2, mae, rmse, median_absolute_error",
        refused=(
            Case("a misspelt metric", {"gates": [{"metric": "roc_acu", "min": 0.5}]}),
            Case("one of two is wrong", {"gates": [{"metric": "f1", "min": 0.5}, {"metric": "rmsle", "max": 1}]}),
        ),
        accepted=(
            Case("one that it reports", {"gates": [{"metric": "log_loss", "max": 0.4}]}),
            Case("no gates", {"gates": ...}),
            Case(
                "a task of one's own reports metrics of its own",
                {"training.task": "mine.ranking:Task", "gates": [{"metric": "ndcg", "min": 0.4}]},
            ),
        ),
    ),
    Rule(
        f"spec.gates: the task ranking reports only {', '.join(contract.TASK_METRICS['ranking'])}",
        refused=(Case("of classes", {**RANKING, "gates": [{"metric": "f1", "min": 0.5}]}),),
        accepted=(Case("its own", {**RANKING, "gates": [{"metric": "ndcg_at_10", "min": 0.5}]}),),
    ),
    Rule(
        "spec.training.earlyStopping.metric: the task ranking reports only "
        f"{', '.join(f'val_{name}' for name in contract.TASK_METRICS['ranking'])}; name one of them, or none for the first",
        refused=(Case("of classes", {**RANKING, "training.earlyStopping.metric": "val_f1"}),),
        accepted=(Case("its own", {**RANKING, "training.earlyStopping.metric": "val_roc_auc"}),),
    ),
    Rule(
        "spec.fairness.metrics: the task ranking compares no groups; take them out",
        refused=(Case("a bound", {**RANKING, "fairness.metrics": {"accuracy_difference": 0.1}}),),
        accepted=(Case("none", {**RANKING, "fairness.metrics": {}}),),
    ),
    Rule(
        "spec.data.target: the labels of the task ranking have two values each; take it out",
        refused=tuple(Case("of another kind", {**RANKING, "data.target": name}) for name in ("multiclass", "regression")),
        accepted=(
            Case("several labels", {**RANKING, **LABELS, "data.target": "multilabel"}),
            Case("one", {**RANKING, "data.target": "binary"}),
        ),
    ),
    *(
        Rule(
            f"spec.gates: the target {target} reports only {', '.join(names)}",
            refused=(
                Case("another target's", {**of_target(target), **NEITHER, "gates": [{"metric": other, "max": 1}]}),
            ),
            accepted=(
                Case("its own", {**of_target(target), **NEITHER, "gates": [{"metric": names[0], "min": 0.5}]}),
                Case(
                    "a task of one's own reports metrics of its own",
                    {**of_target(target), **NEITHER, "training.task": "mine.task:Task",
                     "gates": [{"metric": other, "max": 1}]},
                ),
            ),
        )
        for (target, names), other in zip(contract.TARGET_METRICS.items(), ("mae", "f1", "f1", "roc_auc"), strict=True)
    ),
    *(
        Rule(
            f"spec.training.earlyStopping.metric: the target {target} reports only "
            f"{', '.join(f'val_{name}' for name in names)}; name one of them, or none for the first",
            refused=(
                Case("another target's", {**of_target(target), **NEITHER, "training.earlyStopping.metric": f"val_{other}"}),
                Case("no val_ before it", {**of_target(target), **NEITHER, "training.earlyStopping.metric": names[0]}),
            ),
            accepted=(
                Case(
                    "its own",
                    {**of_target(target), **NEITHER, "training.earlyStopping.metric": f"val_{names[-1]}"},
                ),
                Case("the first", {**of_target(target), **NEITHER, "training.earlyStopping.metric": ...}),
                Case("no early stopping", {**of_target(target), **NEITHER, "training.earlyStopping": ...}),
                Case("the data decides", {"training.earlyStopping.metric": f"val_{other}"}),
                Case(
                    "a task of one's own reports metrics of its own",
                    {**of_target(target), **NEITHER, "training.task": "mine.task:Task",
                     "training.earlyStopping.metric": f"val_{other}"},
                ),
            ),
        )
        for (target, names), other in zip(contract.TARGET_METRICS.items(), ("mae", "f1", "f1", "roc_auc"), strict=True)
    ),
    Rule(
        "spec.gates: the task causal-lm reports only bits_per_byte, perplexity, token_accuracy",
        refused=(Case("one of classes", {**TEXTS, "gates": [{"metric": "roc_auc", "min": 0.5}]}),),
        accepted=(
            Case("its own", {**TEXTS, "gates": [{"metric": "perplexity", "max": 50}]}),
            Case("none", TEXTS),
        ),
    ),
    Rule(
        "spec.training.earlyStopping.metric: the task causal-lm reports only val_bits_per_byte, val_perplexity, "
        "val_token_accuracy; name one of them, or none for the first",
        refused=(Case("one of classes", {**TEXTS, "training.earlyStopping.metric": "val_f1"}),),
        accepted=(Case("its own", {**TEXTS, "training.earlyStopping.metric": "val_perplexity"}),),
    ),
    Rule(
        "spec.data.target: the task causal-lm learns the text itself, which has no target; take it out",
        refused=(Case("classes", {**TEXTS, "data.target": "multiclass"}),),
        accepted=(Case("what the data decides", {**TEXTS, "data.target": "auto"}),),
    ),
    Rule(
        "spec.data.labels: the task causal-lm learns one column of text; name it in spec.data.label",
        refused=(Case("several columns", {**TEXTS, "data.label": ..., "data.labels": ["a", "b"]}),),
        accepted=(Case("one", TEXTS),),
    ),
    Rule(
        "spec.data.positiveLabel: the task causal-lm has no classes; take it out",
        refused=(Case("one class", {**TEXTS, "data.positiveLabel": "yes"}),),
        accepted=(Case("none", TEXTS),),
    ),
    Rule(
        "spec.fairness.metrics: the task causal-lm defines no difference between groups; take them out",
        refused=(Case("a bound", {**TEXTS, "fairness": {"metrics": {"demographic_parity_difference": 0.1}}}),),
        accepted=(Case("none", TEXTS),),
    ),
    *(
        Rule(
            f"spec.fairness.metrics: the target {target} defines only {', '.join(names)}",
            refused=(
                Case("another target's", {**of_target(target), **NO_METRICS, "fairness.metrics": {other: 0.1}}),
            ),
            accepted=(
                Case("its own", {**of_target(target), **NO_METRICS, "fairness.metrics": dict.fromkeys(names, 0.1)}),
                Case("none", {**of_target(target), **NEITHER}),
            ),
        )
        for (target, names), other in zip(
            contract.TARGET_FAIRNESS.items(),
            ("accuracy_difference", *["equalized_odds_difference"] * 2, "demographic_parity_difference"),
            strict=True,
        )
    ),
    Rule(
        "spec.fairness.metrics: demographic_parity_difference, equalized_odds_difference, accuracy_difference are "
        "differences of shares; give each a bound between 0 and 1",
        refused=(Case("a percentage", {"fairness.metrics": {"demographic_parity_difference": 20}}),),
        accepted=(
            Case("all may differ", {"fairness.metrics": {"demographic_parity_difference": 1}}),
            Case("of a measure, in its own unit", {"fairness.metrics": {"mean_prediction_difference": 2500}}),
        ),
    ),
    Rule(
        "spec.data.positiveLabel: only a binary target has a positive class; take it out",
        refused=(
            *(
                Case("no class of several is the positive one", {"data.target": target, "data.positiveLabel": "x", **NEITHER})
                for target in ("multiclass", "regression")
            ),
            Case("of each of several labels it is the greater value", {**LABELS, "data.positiveLabel": "x"}),
        ),
        accepted=(
            Case("of two", {"data.target": "binary", "data.positiveLabel": "x"}),
            Case("it may say that there are two", {"data.positiveLabel": "x"}),
            Case("none", {"data.target": "multiclass", "data.positiveLabel": "", **NEITHER}),
        ),
    ),
    Rule(
        "spec.gates[0]: give min or max: a gate without a bound holds nothing back",
        refused=(Case("a metric alone", {"gates": [{"metric": "roc_auc"}]}),),
        accepted=(Case("a bound of 0 is one", {"gates": [{"metric": "roc_auc", "min": 0}]}),),
    ),
    Rule(
        "spec.gates[0]: min is above max, so no version could pass; swap or correct them",
        refused=(Case("bounds in the wrong order", {"gates": [{"metric": "roc_auc", "min": 0.9, "max": 0.1}]}),),
        accepted=(Case("both ends count as passed", {"gates": [{"metric": "roc_auc", "min": 0.9, "max": 0.9}]}),),
    ),
    Rule(
        "spec.serving.host: must be a host name alone, in lower case and with its domain, without scheme, port, path or "
        "wildcard; write it like credit.example.com",
        refused=(
            Case("a URL", {"serving.host": "https://credit.example.com"}),
            Case("a port", {"serving.host": "credit.example.com:443"}),
            Case("a wildcard would be everybody's", {"serving.host": "*.example.com"}),
            Case("a name without a domain is a Service's", {"serving.host": "credit"}),
            Case("an address", {"serving.host": "10.0.0.1"}),
            Case("capitals", {"serving.host": "Credit.example.com"}),
            Case("a dot at the end", {"serving.host": "credit.example.com."}),
            Case("a label of 64 characters", {"serving.host": f"{'a' * 64}.example.com"}),
        ),
        accepted=(
            Case("one of the company's own", {"serving.host": "credit.example.com"}),
            Case("digits and hyphens", {"serving.host": "3-d.xn--bcher-kva.example"}),
            Case("none", {"serving.host": ""}),
        ),
    ),
    Rule(
        "spec.training.strategy: single is one process; set workers and processesPerWorker to 1, or use fsdp",
        refused=(
            Case("it cannot be two pods", {"training.strategy": "single"}),
            Case("nor two processes in one", {"training": {"strategy": "single", "processesPerWorker": 2}}),
        ),
        accepted=(Case("one pod, one process, by default", {"training": {"strategy": "single"}}),),
    ),
    Rule(
        "spec.training.threshold: set value or maximize, not both",
        refused=(
            Case("none is set", {"training.threshold": {}}),
            Case("both are set", {"training.threshold": {"value": 0.3, "maximize": "f1"}}),
        ),
        accepted=(
            Case("a value", {"training.threshold": {"value": 0.3}}),
            Case("a metric", {"training.threshold": {"maximize": "f1"}}),
        ),
    ),
    Rule(
        "spec.training.threshold: only a binary target of the tasks tabular and text has a threshold; take it out",
        refused=(
            Case(
                "several classes",
                {"training.threshold": {"value": 0.3}, "data.target": "multiclass", **NEITHER, "training.earlyStopping": ...},
            ),
            Case("several labels", {**LABELS, "training.threshold": {"value": 0.3}}),
            Case("a task of one's own", {"training.threshold": {"value": 0.3}, "training.task": "mine.ranking:Task"}),
            Case("texts that continue", {"training.threshold": {"value": 0.3}, **TEXTS}),
        ),
        accepted=(Case("what may be binary", {"training.threshold": {"value": 0.3}, "data.target": "auto"}),),
    ),
    Rule(
        "spec.training.calibration: only classes of the tasks tabular and text have probabilities to calibrate; take it out",
        refused=(
            Case(
                "a measured number",
                {"training.calibration": "temperature", "data.target": "regression", **NEITHER, "training.earlyStopping": ...},
            ),
            Case("a task of one's own", {"training.calibration": "temperature", "training.task": "mine.ranking:Task"}),
            Case("texts that continue", {"training.calibration": "temperature", **TEXTS}),
        ),
        accepted=(
            Case("several classes", {"training.calibration": "temperature", "data.target": "multiclass", **NEITHER, "training.earlyStopping": ...}),
            Case("several labels", {**LABELS, "training.calibration": "temperature"}),
            Case("none of one's own", {"training.calibration": "none", "training.task": "mine.ranking:Task"}),
        ),
    ),
    Rule(
        "spec.training.task: neither a built-in task (tabular, text, causal-lm, ranking) nor package.module:Class",
        refused=(Case("a misspelt task", {"training.task": "tabluar", "gates": ...}),),
        accepted=(
            Case("a class of one's own", {"training.task": "mine.ranking:Task"}),
            Case("the built-in one for text", {"training.task": "text"}),
            Case("the one whose name has a hyphen", TEXTS),
            Case("the built-in one by default", {"training": ...}),
        ),
    ),
    Rule(
        "spec.training.deadline: must be longer than 0s; write it like 90s, 10m or 1h30m",
        refused=(
            Case("no time to train", {"training.deadline": "0s"}),
            Case("nothing of each unit is nothing", {"training.deadline": "0h0m0s"}),
        ),
        accepted=(Case("a second", {"training.deadline": "0h1s"}),),
    ),
    Rule(
        "spec.optimization.candidates: must contain fp32, the reference that the others are compared with; add it",
        refused=(Case("no reference", {"optimization.candidates": ["int8-dynamic"]}),),
        accepted=(Case("the reference alone", {"optimization.candidates": ["fp32"]}),),
    ),
    Rule(
        "spec.serving.replicas: max is below min; raise max",
        refused=(
            Case("bounds in the wrong order", {"serving.replicas": {"min": 3, "max": 2}}),
            Case("max is 1 by default", {"serving.replicas": {"min": 2}}),
        ),
        accepted=(Case("the same number always", {"serving.replicas": {"min": 2, "max": 2}}),),
    ),
    Rule(
        "spec.rollout.steps: must rise, each between 1 and 99; 100 follows by itself",
        refused=(
            Case("they fall", {"rollout.steps": [50, 25]}),
            Case("a step twice is a step too many", {"rollout.steps": [5, 25, 25]}),
        ),
        accepted=(
            Case("no steps: all traffic at once", {"rollout.steps": []}),
            Case("one step", {"rollout.steps": [10]}),
            Case("as many as there may be", {"rollout.steps": list(range(80, 100))}),
        ),
    ),
    Rule(
        "spec.rollout.maxDuration: must be longer than 0s; write it like 90s, 10m or 1h30m",
        refused=(Case("no time to become ready", {"rollout.maxDuration": "0m"}),),
        accepted=(Case("a minute", {"rollout.maxDuration": "1m"}),),
    ),
    Rule(
        "spec: a version never changes; change its MLModel, which makes a new version",
        refused=(
            Case("another number", {"sequence": 2}, before={}),
            Case("a list that is longer", {"data.sensitiveAttributes": ["sex", "race", "age"]}, before={}),
            Case("a field taken out", {"gates": ...}, before={}),
            Case("another hyperparameter's value", {"training.hyperparameters.dropout": 0.2}, before={}),
            Case("deep in what no schema describes", {"training.hyperparameters.hidden": [256, 64]}, before={}),
            Case(
                "a hyperparameter of another name, as many as before",
                {"training.hyperparameters.dropout": ..., "training.hyperparameters.rate": 0.1},
                before={},
            ),
        ),
        accepted=(Case("the same once more", {"sequence": 1}, before={}),),
    ),
    Rule(
        "status.stages[0]: a stage that has ended never changes its outcome, but by another attempt after a failure",
        refused=tuple(
            Case(reason, {"stages": [{"name": "train", **after}]}, {"stages": [{"name": "train", **before}]})
            for reason, before, after in [
                ("what failed runs again", {"outcome": "Failed"}, {"outcome": "Running"}),
                ("what succeeded fails", {"outcome": "Succeeded"}, {"outcome": "Failed"}),
                ("what failed succeeds", {"outcome": "Failed"}, {"outcome": "Succeeded"}),
                ("what succeeded is tried again", {"outcome": "Succeeded"}, {"outcome": "Running", "attempt": 2}),
                ("the same attempt runs again", {"outcome": "Failed", "attempt": 2}, {"outcome": "Running", "attempt": 2}),
            ]
        ),
        accepted=(
            Case(
                "what runs succeeds",
                {"stages": [{"name": "train", "outcome": "Succeeded"}]},
                before={"stages": [{"name": "train", "outcome": "Running"}]},
            ),
            Case(
                "what failed is tried again",
                {"stages": [{"name": "train", "outcome": "Running", "attempt": 2}]},
                before={"stages": [{"name": "train", "outcome": "Failed"}]},
            ),
            Case(
                "what ended may get its report, and another stage may begin",
                {"stages": [{"name": "train", "outcome": "Failed", "report": "s3://a"}, {"name": "audit", "outcome": "Running"}]},
                before={"stages": [{"name": "train", "outcome": "Failed"}]},
            ),
        ),
    ),
    *(
        Rule(
            f"spec.{path}: a key must be a name of at most 63 letters, digits and -_. between them, after a domain and a "
            "slash or without; correct it",
            refused=(
                Case("no key has a space", {path: {"a key": "x"}}),
                Case("two slashes", {path: {"example.com/a/b": "x"}}),
                Case("64 letters", {path: {"x" * 64: "x"}}),
            ),
            accepted=(Case("a domain and a name", {path: {"example.com/a_b.c-d": "x"}}),),
        )
        for path in [f"{place}.{field}" for place in PODS for field in ("nodeSelector", "labels", "annotations")]
    ),
    *(
        Rule(
            f"spec.{path}: has a key that the platform sets: one of mlplatform.dev, kserve.io, kubeflow.org, "
            "kueue.x-k8s.io or batch.kubernetes.io, app.kubernetes.io/name, /instance, /component or /managed-by, app, "
            "component, job-name, controller-uid or sidecar.istio.io/inject; take it out",
            refused=tuple(
                Case(f"{key} is the platform's or its controllers'", {path: {key: "x"}})
                for key in ("mlplatform.dev/model", "serving.kserve.io/x", "app.kubernetes.io/name", "app", "job-name")
            ),
            accepted=(Case("others", {path: {"app.kubernetes.io/part-of": "x", "notmlplatform.dev/x": "y"}}),),
        )
        for path in [f"{place}.{field}" for place in PODS for field in ("labels", "annotations")]
    ),
]  # fmt: skip


def example(plural: str) -> dict[str, Any]:
    """The example's MLModel, or the ModelVersion that the operator would make of it.

    Args:
        plural: ``mlmodels`` or ``modelversions``.
    """
    model: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    if plural == "mlmodels":
        return model
    spec = {section: model["spec"][section] for section in api.VERSIONED}
    name = f"{model['metadata']['name']}-01234567"
    return {
        **model,
        "kind": "ModelVersion",
        "metadata": {"name": name},
        "spec": {"model": model["metadata"]["name"], "sequence": 1, **spec},
    }


def changed(section: dict[str, Any], change: Mapping[str, object]) -> dict[str, Any]:
    """A copy of an object's section with a case's change made."""
    copied = copy.deepcopy(section)
    for path, value in change.items():
        *parents, leaf = path.split(".")
        node = copied
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
        if value is ...:
            del node[leaf]
    return copied
