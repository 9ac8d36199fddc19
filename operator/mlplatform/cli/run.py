"""`kubectl mlmodel run`: the pipeline of an MLModel on this machine, and its model served.

Called by `mlplatform.cli.main`. Shows `mlplatform.standalone`'s run in the same view as `watch`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from mlplatform import api
from mlplatform.cli import predict
from mlplatform.cli.terminal import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, now, say, teller
from mlplatform.cli.view import FailureView, ModelView, Outcome, StageView, VersionView, duration, model_view
from mlplatform.contract import Artifacts, Stage
from mlplatform.snapshot import Object, condition, name_of, status_of
from mlplatform.standalone import serve
from mlplatform.standalone.engine import Moment, Run, reports
from mlplatform.standalone.engine import Outcome as Ended
from mlplatform.standalone.request import Request


def run(args: argparse.Namespace, out: Console, err: Console) -> int:
    """`run -f FILE [NAME]`."""
    aside = err if args.output == "json" else out
    serving = args.serve or args.ask is not None
    request = Request(
        file=args.filename,
        name=args.name or "",
        namespace=args.namespace or "",
        store=Path(args.store),
        data=args.data or "",
        set=tuple(args.set),
        rows=args.rows,
        until=args.until or "",
        keep_going=args.keep_going,
    )
    if serving:
        serve.check(args.port)
    try:
        with teller(out, args.output, color=args.color) as (tell, _):
            work = Run(request, lambda moment: tell(as_view(moment, now())), lambda sentence: say(aside, sentence))
            ended = work.go()
    except KeyboardInterrupt:
        say(aside, f"stopped; go on from there: {command_line()}")
        return EXIT_INTERRUPTED
    _close(args, ended, out)
    if ended.failed:
        return EXIT_FAILED
    if serving and ended.complete:
        return _serve(args, ended, out)
    return EXIT_OK


def as_view(moment: Moment, at: datetime) -> ModelView:
    """A moment as `watch` would show it, less what only a cluster has."""
    version, status = moment.version, status_of(moment.version)
    ready = condition(version, "Ready")
    passed = ready.get("status") == "True"
    name, sequence = name_of(version), version["spec"]["sequence"]
    model = {
        **moment.model,
        "status": {
            "stage": status.get("stage", ""),
            "latestVersion": name,
            "latestSequence": sequence,
            "conditions": [c for c in status["conditions"] if c["type"] in {"Accepted", "Ready"}]
            + [{**ready, "type": "VersionReady"}],
            **({"stable": {"version": name, "sequence": sequence}} if passed else {}),
        },
    }
    view = model_view(model, [version], at)
    view = replace(view, version=view.version and _own_stages(view.version, moment), traffic=None, url="")
    if passed and moment.until and not moment.missed:
        return replace(view, outcome=Outcome.PROGRESSING, message=f"ended after {moment.until}, as asked")
    if not moment.missed:
        return view
    told = [f"{stage}: {message}" for stage, message in moment.missed.items()]
    if view.outcome is Outcome.FAILED and view.failure:
        told.append(f"{view.failure.stage}: {view.failure.message}. {view.failure.next_action}")
    cause = "\n".join(told)
    over = passed or view.outcome is Outcome.FAILED
    failure = FailureView(reason="GateFailed", message=cause)
    return replace(view, outcome=Outcome.FAILED if over else view.outcome, message=cause, failure=failure)


def _own_stages(version: VersionView, moment: Moment) -> VersionView:
    """The stages that a run has: training with what it says of itself, one whose gates were missed as failed."""
    words = progress_words(moment.progress)

    def own(stage: StageView) -> StageView:
        if stage.name in moment.missed:
            return replace(stage, state="failed")
        told = stage.state == "running" and stage.name == Stage.TRAIN and words
        return replace(stage, summary=words) if told else stage

    return replace(version, stages=tuple(own(stage) for stage in version.stages if stage.name != "rollout"))


def progress_words(progress: dict[str, str]) -> str:
    """``epoch 3/12, step 114/456, loss 0.3123, 251,000 rows/s, 7s left``."""
    if not progress:
        return ""
    parts = [f"{key} {value}" for key, value in progress.items() if key not in {"rows_per_s", "eta_s"}]
    parts += [f"{float(progress['rows_per_s']):,.0f} rows/s"] if "rows_per_s" in progress else []
    parts += [f"{duration(float(progress['eta_s']))} left"] if "eta_s" in progress else []
    return ", ".join(parts)


def _close(args: argparse.Namespace, ended: Ended, out: Console) -> None:
    """Where the evidence is, and how to open it."""
    found = reports(ended)
    if args.output == "json":
        last = {
            "time": now().isoformat(timespec="seconds"),
            "version": name_of(ended.moment.version),
            "passed": not ended.failed,
            "missed": ended.missed,
            "artifacts": str(ended.folder),
            "reports": found,
        }
        out.file.write(json.dumps(last, separators=(",", ":")) + "\n")
        out.file.flush()
        return
    say(out, "")
    audited = condition(ended.moment.version, "Audited")
    if audited.get("status") in {"True", "False"}:
        say(out, f"audited   {audited['message']}")
    if (report := found.get("train report")) and (unusual := _unusual(ended)):
        for sentence in unusual:
            say(out, f"column    {sentence}")
        program = shlex.join(_program())
        say(out, f"          all of them: {program} data --report {shlex.quote(_short(report))}")
    if "audit" in found:
        opener = next((name for name in ("xdg-open", "open") if shutil.which(name)), "xdg-open")
        say(out, f"its page  {opener} {shlex.quote(_short(found['audit']))}")
    say(out, f"evidence  {_short(str(ended.folder))}/<stage>/report.json, logs/")
    if "archive" in found:
        say(out, f"archive   {_short(found['archive'])}")
    if ended.complete and not args.serve and args.ask is None:
        say(out, f"serve it  {command_line()} --serve")


def _unusual(ended: Ended) -> list[str]:
    """What the training says of columns, a sentence each."""
    stages = status_of(ended.moment.version).get("stages", ())
    train: Object = next((stage for stage in stages if stage["name"] == Stage.TRAIN), {})
    found: list[str] = train.get("details", {}).get("columns", [])
    return found


def _serve(args: argparse.Namespace, ended: Ended, out: Console) -> int:
    """Serves the archive until Ctrl-C; with `--ask` for one question."""
    model, log = name_of(ended.moment.model), ended.folder / "logs" / "torchserve.log"
    serving = api.decode(api.MLModelSpec, ended.moment.model["spec"]).serving
    server = serve.start(ended.folder / Artifacts.SERVING, model, log, args.port, serving)
    try:
        server.wait_ready()
        features = args.ask or json.loads((ended.folder / Artifacts.EXAMPLE).read_text())
        question = json.dumps({"features": features})
        if args.ask is not None:
            answer = predict.ask_url(server.url, features)
            return _answered(args, question, answer, out)
        if args.output == "json":
            out.file.write(json.dumps({"url": server.url}) + "\n")
            out.file.flush()
        else:
            say(out, f"\nserving   {server.url}   (Ctrl-C drains it; its log: {_short(str(log))})")
            say(out, f"ask it    curl -s {server.url} --json {shlex.quote(question)}")
        server.wait()
    except KeyboardInterrupt:
        if args.output != "json":
            say(out, "draining: requests under way are answered")
        return EXIT_OK
    finally:
        server.stop()
    say(out, f"TorchServe ended by itself; its log is {_short(str(log))}")
    return EXIT_FAILED


def _answered(args: argparse.Namespace, question: str, answer: Any, out: Console) -> int:
    if args.output == "json":
        out.file.write(json.dumps({"question": json.loads(question), "answer": answer}) + "\n")
    else:
        say(out, f"\nquestion  {question}")
        say(out, f"answer    {json.dumps(answer)}")
        say(out, f"serve it  {command_line(without=args.ask)} --serve")
    out.file.flush()
    return EXIT_OK


def command_line(without: Any = None) -> str:
    """This very command, to be typed again; less `--serve`, and less `--ask` with this question."""
    words = [word for word in sys.argv[1:] if word != "--serve"]
    if "--ask" in words:
        at = words.index("--ask")
        del words[at : at + (2 if without else 1)]
    return shlex.join([*_program(), *words])


def _program() -> list[str]:
    """How the user calls this program: as kubectl's plugin where kubectl would find it."""
    own, found = Path(sys.argv[0]), shutil.which("kubectl-mlmodel")
    if own.name != "kubectl-mlmodel":
        return ["python", "-m", "mlplatform.cli.main"]
    if found and own.exists() and own.samefile(found):
        return ["kubectl", "mlmodel"] if shutil.which("kubectl") else ["kubectl-mlmodel"]
    return [_short(str(own))]


def _short(path: str) -> str:
    """Relative to the working folder where it lies below that."""
    found = Path(path)
    return str(found.relative_to(Path.cwd())) if found.is_relative_to(Path.cwd()) else path
