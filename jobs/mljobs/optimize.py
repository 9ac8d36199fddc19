"""The stage `optimize`: makes smaller or faster forms of the model and chooses the one that ships.

Run as ``python -m mljobs.optimize`` in a batch Job. What is measured is the file that would
ship, loaded as the serving pod loads it: its metrics on the test split, how far its
outputs are from the trained model's, its size, and its latency for one record. `choice` decides.

A candidate's file for packaging is ``optimize/candidates/<name>.pt`` (TorchScript, always
written: the TorchServe runtime needs it); ``<name>.onnx`` lies beside it if
`spec.optimization.export` asks for it and the file may ship, too. `report.json` lists them under
``files``, what became of each ONNX file under ``onnx``, the chosen candidate under ``selected``, and
what decided under ``choice`` and ``comparisons``.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mljobs import data, export, trained
from mljobs.choice import CONFIDENCE, QUANTILES, TIE, Choice, choose
from mljobs.cpu import cpu_limit
from mljobs.export import INT8, PARITY_TOLERANCE, REFERENCE
from mljobs.failure import JobFailure
from mljobs.forked import beside
from mljobs.report import REASON_LIMIT, Job, run, say, shorten
from mljobs.tasks import Objective
from mljobs.trained import Trained
from mlplatform.api import ModelVersionSpec
from mlplatform.contract import Artifacts, FailureClass, Stage, Summary

MAKE: Final[dict[str, Callable[[nn.Module], nn.Module]]] = {REFERENCE: lambda model: model, INT8: export.int8}

Floats = npt.NDArray[np.float64]
Score = Callable[[Sequence[Tensor]], Tensor]
"""A model's outputs for some rows' tensors."""

ROUNDS: Final = 30
ROUNDS_TO_TELL: Final = 10
"""Of times that are reported and decide nothing."""
RUNS: Final = 100
"""Timed single-record runs of each candidate in a round."""
ATTEMPTS: Final = 3
"""At a run that is not interrupted; the last one counts in any case."""
WARM_UP: Final = 50
MEASURED_SECONDS: Final = 60.0
"""That all the runs of all candidates may take. A slow model, or a busy node, has fewer runs, and proves less."""
LEAST_RUNS: Final = 10


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
        difference: Largest difference of a score from the module that it was made from; None if it was
            quantised since, and only its metrics tell whether it is any good.
    """

    name: str
    size_bytes: int
    latency: Latency
    metrics: Mapping[str, float]
    fairness: Mapping[str, Mapping[str, float]]
    difference: float | None


def objections(candidate: Measured, reference: Measured, spec: ModelVersionSpec, objective: Objective) -> list[str]:
    """Why `candidate` may not ship; empty if it may.

    Args:
        candidate: Judged.
        reference: The fp32 candidate.
        spec: Gates, fairness bounds and the largest drop.
        objective: What was learned; the drop of its first metric counts if there are no gates.
    """
    found = []
    if candidate.difference is not None and candidate.difference > PARITY_TOLERANCE:
        found.append(f"its file differs from the model by {candidate.difference:.2g} in {objective.unit}")
    for metric in dict.fromkeys([gate.metric for gate in spec.gates] or [objective.metrics[0]]):
        drop = reference.metrics[metric] - candidate.metrics[metric]
        drop = -drop if metric in objective.less_is_better else drop
        share = "" if metric not in objective.in_label_units else f" of {REFERENCE}'s"
        if share:
            drop /= reference.metrics[metric] or 1.0
        if drop > spec.optimization.max_metric_drop:
            limit = spec.optimization.max_metric_drop
            found.append(f"{metric} is {drop:.4f}{share} worse than {REFERENCE}'s, over {limit}")
    for gate in spec.gates:
        value = candidate.metrics[gate.metric]
        if gate.min is not None and value < gate.min:
            found.append(f"{gate.metric} {value:.4f} is below the gate {gate.min}")
        if gate.max is not None and value > gate.max:
            found.append(f"{gate.metric} {value:.4f} is above the gate {gate.max}")
    if spec.fairness.on_failure == "block":
        found += [
            f"{metric} by {attribute} is not shown: every row gets one answer"
            for metric in spec.fairness.metrics
            for attribute in reference.fairness.get(metric, {})
            if attribute not in candidate.fairness.get(metric, {})
        ]
        found += [
            f"{metric} by {attribute} {value:.4f} is above the bound {bound}"
            for metric, bound in spec.fairness.metrics.items()
            for attribute, value in candidate.fairness.get(metric, {}).items()
            if value > bound
        ]
    return found


def measure_latency(
    runners: Mapping[str, Callable[[int], object]], rounds: int = ROUNDS, seconds: float = MEASURED_SECONDS
) -> dict[str, Floats]:
    """Times the runners call by call in turns, so that a busy moment of the node hits all alike.

    Every second time the turns go backwards, so that each follows each other equally often. A run that the system
    interrupted to let another thread run tells of that thread, and is taken again.

    Args:
        runners: Each scores one record, chosen by a number.
        rounds: How many after the warm-up.
        seconds: When no further round begins; the runs of a round are as many as let all rounds begin by then.

    Returns:
        Milliseconds of each, ``(rounds, runs)``.
    """
    forwards = list(runners.items())
    backwards = forwards[::-1]
    until = time.monotonic() + seconds

    def turn(i: int) -> list[float]:
        took = {name: timed(runner, i) for name, runner in (backwards if i % 2 else forwards)}
        return [took[name] for name in runners]

    warm: list[float] = []
    while not warm or (len(warm) < WARM_UP and time.monotonic() < until - seconds * (1 - 1 / rounds)):
        warm.append(sum(turn(len(warm))))
    runs = int(np.clip(1000 * seconds / rounds / np.median(warm), LEAST_RUNS, RUNS))
    times: list[list[list[float]]] = []
    while len(times) < rounds and (not times or time.monotonic() < until):
        times.append([turn(i) for i in range(runs)])
    return dict(zip(runners, np.array(times).transpose(2, 0, 1), strict=True))


def timed(runner: Callable[[int], object], i: int) -> float:
    """Milliseconds of a run on record `i`."""
    took = 0
    for _ in range(ATTEMPTS):
        before = interruptions()
        start = time.perf_counter_ns()
        runner(i)
        took = time.perf_counter_ns() - start
        if interruptions() == before:
            break
    return took / 1e6


def interruptions() -> int:
    """How often a thread of this process had to make way for another although it had work left."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def latency(times: Floats) -> Latency:
    """The medians over the rounds of each round's quantiles: one disturbed round does not count."""
    return Latency(*(float(np.median(np.quantile(times, q, axis=1))) for q in QUANTILES.values()))


def runner(score: Score, inputs: Sequence[Tensor]) -> Callable[[int], object]:
    """Scores the record of a number."""
    records = [tuple(part[i : i + 1] for part in inputs) for i in range(min(RUNS, len(inputs[0])))]
    return lambda i: score(records[i % len(records)])


def by_module(module: nn.Module) -> Score:
    """Scores with a TorchScript module."""

    def score(inputs: Sequence[Tensor]) -> Tensor:
        with torch.inference_mode():
            outputs: Tensor = module(*inputs)
            return outputs

    return score


def by_rows(score: Score) -> Callable[..., Tensor]:
    """Takes the tensors one by one, as a module does."""
    return lambda *inputs: score(inputs)


def group_differences(found: Trained, scores: Floats, spec: ModelVersionSpec) -> dict[str, dict[str, float]]:
    """``{<metric>: {<attribute>: value}}`` of a candidate's scores."""
    differences: dict[str, dict[str, float]] = {}
    for attribute in spec.data.sensitive_attributes:
        groups = data.groups(found.test, attribute)
        values = found.objective.differences(groups, found.targets, scores, spec.fairness.min_group_size)
        for metric, value in values.items():
            differences.setdefault(metric, {})[attribute] = value
    return differences


def write_onnx(found: Trained, candidates: Sequence[str]) -> dict[str, bytes]:
    """The candidates' ONNX files."""
    from mljobs import onnx_files  # noqa: PLC0415  loaded for those who ask for it, by the process that writes

    return onnx_files.files(found.model, found.inputs, candidates)


def judge_onnx(
    found: Trained, files: Mapping[str, bytes], reference: Measured, spec: ModelVersionSpec, threads: int
) -> dict[str, dict[str, Any]]:
    """What the report says of each ONNX file; those that passed may ship.

    Args:
        found: The trained model.
        files: By candidate; may be empty.
        reference: The fp32 candidate.
        spec: What `objections` needs.
        threads: Of ONNX Runtime.

    Raises:
        JobFailure: The reference's graph computes something else than the model.
    """
    if not files:
        return {}
    from mljobs.onnx_session import Session  # noqa: PLC0415  ONNX Runtime is loaded for those who ask for it

    objective = found.objective
    wanted = trained.scores(objective, found.model, found.inputs)
    sessions = {name: Session(content, threads) for name, content in files.items()}
    runners = {name: runner(session, found.inputs) for name, session in sessions.items()}
    times = measure_latency(runners, ROUNDS_TO_TELL)
    checks: dict[str, dict[str, Any]] = {}
    for name, session in sessions.items():
        scores = trained.scores(objective, by_rows(session), found.inputs)
        difference = objective.difference(scores, wanted)
        if name == REFERENCE and difference > PARITY_TOLERANCE:
            raise JobFailure(
                FailureClass.GATE_FAILED,
                f"the ONNX file of {name} differs from the model by {difference:.2g} in {objective.unit}, "
                f"over {PARITY_TOLERANCE}",
                "Remove onnx from spec.optimization.export, or report the model's operators to ONNX's exporter",
            )
        metrics, differences = objective.evaluate(found.targets, scores), group_differences(found, scores, spec)
        measured = Measured(name, len(files[name]), latency(times[name]), metrics, differences, None)
        reasons = objections(measured, reference, spec, objective)
        say(f"{name} as ONNX: {'; '.join(reasons) or 'passed'}")
        checks[name] = {**entry(measured, reasons), "maxAbsDifference": difference}
    return checks


def main(job: Job) -> Summary:
    """Makes, measures, chooses; returns the summary."""
    threads = cpu_limit()
    torch.set_num_threads(threads)
    found, asked = trained.load(job), job.spec.optimization
    objective = found.objective
    wants_onnx = "onnx" in asked.export
    with (
        beside(partial(write_onnx, found, asked.candidates)) if wants_onnx else nullcontext(dict[str, bytes]) as written
    ):
        modules: dict[str, nn.Module] = {name: MAKE[name](found.model) for name in asked.candidates}
        files = {name: export.torchscript(module, found.inputs) for name, module in modules.items()}
        loaded = {name: export.load_torchscript(content) for name, content in files.items()}
        judged = {}
        for name, module in loaded.items():
            scores = trained.scores(objective, module, found.inputs)
            difference = objective.difference(scores, trained.scores(objective, modules[name], found.inputs))
            metrics = objective.evaluate(found.targets, scores)
            judged[name] = metrics, group_differences(found, scores, job.spec), difference
        onnx = written()  # before anything is timed: the times are of an idle neighbour
    times = measure_latency({name: runner(by_module(module), found.inputs) for name, module in loaded.items()})
    candidates = [Measured(name, len(files[name]), latency(times[name]), *judged[name]) for name in loaded]

    reference = next(candidate for candidate in candidates if candidate.name == REFERENCE)
    reasons = {c.name: objections(c, reference, job.spec, objective) for c in candidates}
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
    chosen = choose_by(asked.objective, [c for c in candidates if c.name in passed], times)
    say(f"by {asked.objective} {chosen.sentence}")

    listed = {name: {"torchscript": f"{Artifacts.CANDIDATES}/{name}.pt"} for name in files}
    checks = judge_onnx(found, onnx, reference, job.spec, threads)
    for name, check in checks.items():
        if check["passed"]:
            listed[name]["onnx"] = f"{Artifacts.CANDIDATES}/{name}.onnx"
            job.write(listed[name]["onnx"], onnx[name])
    for name, content in files.items():
        job.write(listed[name]["torchscript"], content)
    more = {
        "latencyRuns": times[REFERENCE].size,
        "sample": found.sample,
        "files": listed,
        "onnx": checks,
        "threads": threads,
    }
    return finish(job, candidates, reasons, chosen, more)


def choose_by(objective: str, candidates: Sequence[Measured], times: Mapping[str, Floats]) -> Choice:
    """The choice among candidates that may ship, by every round's quantile where the objective is a time."""
    sizes = {candidate.name: candidate.size_bytes for candidate in candidates}
    if objective not in QUANTILES:
        return choose(sizes, {}, objective)
    return choose(sizes, {name: np.quantile(times[name], QUANTILES[objective], axis=1) for name in sizes}, objective)


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
    job: Job, candidates: Sequence[Measured], reasons: Mapping[str, list[str]], chosen: Choice, more: Mapping[str, Any]
) -> Summary:
    """Writes the report and returns the summary."""
    entries = [entry(c, reasons[c.name]) for c in candidates]
    full = [
        {**listed, "fairness": c.fairness, "maxAbsDifference": c.difference, "tolerance": PARITY_TOLERANCE}
        for listed, c in zip(entries, candidates, strict=True)
    ]
    short = [{**listed, "reason": shorten(listed["reason"], REASON_LIMIT)} for listed in entries]
    winner = next(c for c in candidates if c.name == chosen.name)
    report = {
        "selected": chosen.name,
        "objective": job.spec.optimization.objective,
        "choice": chosen.sentence,
        "comparisons": [{**asdict(pair), "provenFaster": pair.proven_faster} for pair in chosen.comparisons],
        "confidence": CONFIDENCE,
        "tie": TIE,
        "maxMetricDrop": job.spec.optimization.max_metric_drop,
        "candidates": full,
        **more,
    }
    metrics = {
        **winner.metrics,  # of what ships, not of the model it was made from
        "latency_p50_ms": winner.latency.p50,
        "latency_p99_ms": winner.latency.p99,
        "size_bytes": float(winner.size_bytes),
    }
    details = {"selected": chosen.name, "choice": shorten(chosen.sentence, REASON_LIMIT), "candidates": short}
    return job.finish(report, metrics, details)


if __name__ == "__main__":
    sys.exit(run(Stage.OPTIMIZE, main))
