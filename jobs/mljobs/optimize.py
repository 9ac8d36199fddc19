"""The stage `optimize`: makes smaller or faster forms of the model and chooses the one that ships.

Run as ``python -m mljobs.optimize`` in a batch Job. What is measured is the file that would
ship, loaded as the serving pod loads it: its metrics on the test split, how far its
outputs are from the trained model's, its size, and its latency for one record.

A candidate's file for packaging is ``optimize/candidates/<name>.pt`` (TorchScript, always
written: the TorchServe runtime needs it); ``<name>.onnx`` lies beside it if
`spec.optimization.export` asks for it and the file may ship, too. `report.json` lists them under
``files``, what became of each ONNX file under ``onnx`` and the chosen candidate under ``selected``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from mljobs import data, export, fairness, trained
from mljobs.cpu import cpu_limit
from mljobs.export import PARITY_TOLERANCE
from mljobs.failure import JobFailure
from mljobs.report import REASON_LIMIT, Job, run, say, shorten
from mljobs.tasks.tabular import THRESHOLD
from mljobs.trained import Trained
from mljobs.trainer import EVALUATION_ROWS
from mlplatform.api import ModelVersionSpec
from mlplatform.contract import LOWER_IS_BETTER, Artifacts, FailureClass, Stage, Summary

REFERENCE: Final = "fp32"
MAKE: Final[dict[str, Callable[[nn.Module], nn.Module]]] = {REFERENCE: lambda model: model, "int8-dynamic": export.int8}

TIE: Final = 0.05
"""A candidate must beat the reference by this share of the objective: less is noise, and fp32 is exact."""
ROUNDS: Final = 15
RUNS: Final = 200
"""Timed single-record runs of each candidate in a round; the candidates take turns."""
WARM_UP: Final = 50


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds for one record."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One candidate as it would ship.

    Attributes:
        name: As in the specification.
        size_bytes: Of the file.
        latency: Of the model alone, for one record.
        metrics: On the test split.
        fairness: ``{<metric>: {<attribute>: value}}`` on the test split.
        difference: Largest difference of a probability from the module that it was made from; None if it was
            quantised since, and only its metrics tell whether it is any good.
    """

    name: str
    size_bytes: int
    latency: Latency
    metrics: Mapping[str, float]
    fairness: Mapping[str, Mapping[str, float]]
    difference: float | None


def objections(candidate: Measured, reference: Measured, spec: ModelVersionSpec, first_metric: str) -> list[str]:
    """Why `candidate` may not ship; empty if it may.

    Args:
        candidate: Judged.
        reference: The fp32 candidate.
        spec: Gates, fairness bounds and the largest drop.
        first_metric: Whose drop counts if there are no gates.
    """
    found = []
    if candidate.difference is not None and candidate.difference > PARITY_TOLERANCE:
        found.append(f"its file differs from the model by {candidate.difference:.2g} in probability")
    for metric in dict.fromkeys([gate.metric for gate in spec.gates] or [first_metric]):
        drop = reference.metrics[metric] - candidate.metrics[metric]
        drop = -drop if metric in LOWER_IS_BETTER else drop
        if drop > spec.optimization.max_metric_drop:
            found.append(f"{metric} is {drop:.4f} worse than {REFERENCE}'s, over {spec.optimization.max_metric_drop}")
    for gate in spec.gates:
        value = candidate.metrics[gate.metric]
        if gate.min is not None and value < gate.min:
            found.append(f"{gate.metric} {value:.4f} is below the gate {gate.min}")
        if gate.max is not None and value > gate.max:
            found.append(f"{gate.metric} {value:.4f} is above the gate {gate.max}")
    if spec.fairness.on_failure == "block":
        found += [
            f"{metric} by {attribute} {value:.4f} is above the bound {bound}"
            for metric, bound in spec.fairness.metrics.items()
            for attribute, value in candidate.fairness.get(metric, {}).items()
            if value > bound
        ]
    return found


def select(candidates: Sequence[Measured], passed: set[str], objective: str) -> str:
    """The name of the candidate that ships: the best by `objective` of those that passed, fp32 on a tie.

    Args:
        candidates: All that were measured, fp32 among them.
        passed: Names of those without objections; not empty.
        objective: ``latency_p50``, ``latency_p99`` or ``size``.
    """
    costs: dict[str, Callable[[Measured], float]] = {
        "latency_p50": lambda c: c.latency.p50,
        "latency_p99": lambda c: c.latency.p99,
        "size": lambda c: float(c.size_bytes),
    }
    cost = costs[objective]
    able = [candidate for candidate in candidates if candidate.name in passed]
    best = min(able, key=cost)
    reference = next((candidate for candidate in able if candidate.name == REFERENCE), best)
    return best.name if cost(best) < cost(reference) * (1 - TIE) else reference.name


def measure_latency(runners: Mapping[str, Callable[[int], object]], rounds: int = ROUNDS) -> dict[str, Latency]:
    """Times each runner in turns, so that a busy moment of the node hits all alike.

    Args:
        runners: Each scores one record, chosen by a number.
        rounds: How many turns each takes.

    Returns:
        The median over the turns of each turn's percentiles: one disturbed turn does not count.
    """
    taken: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in runners}
    for turn in range(rounds + 1):
        for name, runner in runners.items():
            times = np.empty(RUNS if turn else WARM_UP)
            for i in range(len(times)):
                start = time.perf_counter_ns()
                runner(i)
                times[i] = (time.perf_counter_ns() - start) / 1e6
            if turn:
                taken[name].append(np.quantile(times, [0.5, 0.99]))
    return {name: Latency(*(float(x) for x in np.median(turns, axis=0))) for name, turns in taken.items()}


def module_runner(module: nn.Module, inputs: Sequence[Tensor]) -> Callable[[int], object]:
    """Scores the record of a number with a TorchScript module."""
    records = [tuple(part[i : i + 1] for part in inputs) for i in range(min(RUNS, len(inputs[0])))]

    def score(i: int) -> object:
        with torch.inference_mode():
            return module(*records[i % len(records)])

    return score


def session_runner(session: InferenceSession, inputs: Sequence[Tensor]) -> Callable[[int], object]:
    """Scores the record of a number with ONNX Runtime."""
    records = [tuple(part[i : i + 1] for part in inputs) for i in range(min(RUNS, len(inputs[0])))]
    return lambda i: export.run_onnx(session, records[i % len(records)])


def group_differences(
    found: Trained, scores: npt.NDArray[np.float64], spec: ModelVersionSpec
) -> dict[str, dict[str, float]]:
    """``{<metric>: {<attribute>: value}}`` of a candidate's scores."""
    differences: dict[str, dict[str, float]] = {}
    for attribute in spec.data.sensitive_attributes:
        groups = data.groups(found.test, attribute)
        values = fairness.point_estimates(groups, found.positive, scores >= THRESHOLD, spec.fairness.min_group_size)
        for metric, value in values.items():
            differences.setdefault(metric, {})[attribute] = value
    return differences


def onnx_probabilities(session: InferenceSession, inputs: Sequence[Tensor]) -> npt.NDArray[np.float64]:
    """The positive class's probabilities, ``(rows,)``; as many rows at a time as memory is sure to hold."""
    parts = [
        export.run_onnx(session, tuple(part[i : i + EVALUATION_ROWS] for part in inputs))
        for i in range(0, len(inputs[0]), EVALUATION_ROWS)
    ]
    found: npt.NDArray[np.float64] = torch.sigmoid(torch.cat(parts).double()).numpy()
    return found


def export_onnx(
    found: Trained, reference: Measured, spec: ModelVersionSpec, threads: int
) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    """The ONNX files that may ship, by candidate, and what the report says of each that was made.

    Args:
        found: The trained model.
        reference: The fp32 candidate.
        spec: Candidates, and what `objections` needs.
        threads: Of ONNX Runtime.

    Raises:
        JobFailure: The reference's graph computes something else than the model.
    """
    wanted = trained.probabilities(found.model, found.inputs)
    plain = export.to_onnx(found.model, found.inputs)
    names = spec.optimization.candidates
    files = {name: plain if name == REFERENCE else export.onnx_int8(plain) for name in names}
    sessions = {name: export.onnx_session(content, threads) for name, content in files.items()}
    latencies = measure_latency({name: session_runner(session, found.inputs) for name, session in sessions.items()})
    checks: dict[str, dict[str, Any]] = {}
    for name, session in sessions.items():
        scores = onnx_probabilities(session, found.inputs)
        difference = float(np.abs(scores - wanted).max())
        if name == REFERENCE and difference > PARITY_TOLERANCE:
            raise JobFailure(
                FailureClass.GATE_FAILED,
                f"the ONNX file of {name} differs from the model by {difference:.2g} in probability, "
                f"over {PARITY_TOLERANCE}",
                "Remove onnx from spec.optimization.export, or report the model's operators to ONNX's exporter",
            )
        metrics, differences = found.task.evaluate(found.positive, scores), group_differences(found, scores, spec)
        measured = Measured(name, len(files[name]), latencies[name], metrics, differences, None)
        reasons = objections(measured, reference, spec, found.task.metrics[0])
        say(f"{name} as ONNX: {'; '.join(reasons) or 'passed'}")
        checks[name] = {**entry(measured, reasons), "maxAbsDifference": difference}
    return {name: content for name, content in files.items() if checks[name]["passed"]}, checks


def main(job: Job) -> Summary:
    """Makes, measures, chooses; returns the summary."""
    threads = cpu_limit()
    torch.set_num_threads(threads)
    found, asked = trained.load(job), job.spec.optimization
    modules: dict[str, nn.Module] = {name: MAKE[name](found.model) for name in asked.candidates}
    files = {name: export.torchscript(module, found.inputs) for name, module in modules.items()}
    loaded = {name: export.load_torchscript(content) for name, content in files.items()}
    latencies = measure_latency({name: module_runner(module, found.inputs) for name, module in loaded.items()})
    candidates = []
    for name, module in loaded.items():
        scores = trained.probabilities(module, found.inputs)
        difference = float(np.abs(scores - trained.probabilities(modules[name], found.inputs)).max())
        metrics = found.task.evaluate(found.positive, scores)
        differences = group_differences(found, scores, job.spec)
        candidates.append(Measured(name, len(files[name]), latencies[name], metrics, differences, difference))

    reference = next(candidate for candidate in candidates if candidate.name == REFERENCE)
    reasons = {c.name: objections(c, reference, job.spec, found.task.metrics[0]) for c in candidates}
    passed = {name for name, reason in reasons.items() if not reason}
    for candidate in candidates:
        say(
            f"{candidate.name}: size={candidate.size_bytes} p50_ms={candidate.latency.p50:.4f} "
            f"p99_ms={candidate.latency.p99:.4f} {'; '.join(reasons[candidate.name]) or 'passed'}"
        )
    if not passed:
        raise JobFailure(
            FailureClass.GATE_FAILED,
            "no candidate may ship: " + "; ".join(f"{name}: {', '.join(reason)}" for name, reason in reasons.items()),
            "Relax spec.gates, spec.fairness.metrics or spec.optimization.maxMetricDrop, or improve the model",
        )
    chosen = select(candidates, passed, asked.objective)
    say(f"selected {chosen} by {asked.objective}")

    listed = {name: {"torchscript": f"{Artifacts.CANDIDATES}/{name}.pt"} for name in files}
    onnx_report: dict[str, dict[str, Any]] = {}
    if "onnx" in asked.export:
        onnx_files, onnx_report = export_onnx(found, reference, job.spec, threads)
        for name, content in onnx_files.items():
            listed[name]["onnx"] = f"{Artifacts.CANDIDATES}/{name}.onnx"
            job.store.write(listed[name]["onnx"], content)
    for name, content in files.items():
        job.store.write(listed[name]["torchscript"], content)
    return finish(job, candidates, reasons, chosen, {"files": listed, "onnx": onnx_report, "threads": threads})


def entry(candidate: Measured, reasons: Sequence[str]) -> dict[str, Any]:
    """A candidate as reports and the summary list it."""
    return {
        "name": candidate.name,
        "sizeBytes": candidate.size_bytes,
        "latencyP50Ms": round(candidate.latency.p50, 4),
        "latencyP99Ms": round(candidate.latency.p99, 4),
        "metrics": dict(candidate.metrics),  # as they are: the operator holds them against the gates
        "passed": not reasons,
        "reason": "; ".join(reasons),
    }


def finish(
    job: Job, candidates: Sequence[Measured], reasons: Mapping[str, list[str]], chosen: str, more: Mapping[str, Any]
) -> Summary:
    """Writes the report and returns the summary."""
    entries = [entry(c, reasons[c.name]) for c in candidates]
    full = [
        {**listed, "fairness": c.fairness, "maxAbsDifference": c.difference, "tolerance": PARITY_TOLERANCE}
        for listed, c in zip(entries, candidates, strict=True)
    ]
    short = [{**listed, "reason": shorten(listed["reason"], REASON_LIMIT)} for listed in entries]
    winner = next(c for c in candidates if c.name == chosen)
    report = {
        "selected": chosen,
        "objective": job.spec.optimization.objective,
        "maxMetricDrop": job.spec.optimization.max_metric_drop,
        "candidates": full,
        "latencyRuns": ROUNDS * RUNS,
        **more,
    }
    metrics = {
        **winner.metrics,  # of what ships, not of the model it was made from
        "latency_p50_ms": winner.latency.p50,
        "latency_p99_ms": winner.latency.p99,
        "size_bytes": float(winner.size_bytes),
    }
    return job.finish(report, metrics, {"selected": chosen, "candidates": short})


if __name__ == "__main__":
    sys.exit(run(Stage.OPTIMIZE, main))
