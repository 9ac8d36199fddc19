"""`kubectl mlmodel` as a program: exit codes, errors with their next action, streams, Ctrl-C.

A small HTTP server stands in for the API server where the answer matters and
not the cluster; tests/e2e runs the same commands against a real one.
"""

from __future__ import annotations

import json
import os
import pty
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from unit import cli_objects as objects

from mlplatform import contract
from mlplatform.cli import cluster
from mlplatform.cli.main import main, parser

Answer = tuple[int, dict[str, Any]]
PREFIX = "/apis/mlplatform.dev/v1alpha1"


def refusal(code: int, reason: str, message: str) -> Answer:
    return code, {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code}


@dataclass
class FakeApi:
    """Lists what `objects` holds, streams what `events` brings, records what is asked."""

    objects: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"mlmodels": [], "modelversions": []})
    events: dict[str, queue.Queue[dict[str, Any] | None]] = field(
        default_factory=lambda: {"mlmodels": queue.Queue(), "modelversions": queue.Queue()}
    )
    refuse: Answer | None = None
    refuse_watch: Answer | None = None
    log: str = ""
    asked: list[str] = field(default_factory=list)
    patches: list[dict[str, Any]] = field(default_factory=list)
    watching: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    server: ThreadingHTTPServer = field(init=False)

    def start(self) -> None:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args: object) -> None:
                """Keeps the test's output clean."""

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                api.asked.append(url.path)
                plural = url.path.rsplit("/", 1)[-1]
                watches = "watch" in parse_qs(url.query)
                refused = api.refuse_watch if watches else api.refuse
                if refused is not None:
                    self._send(*refused)
                elif watches:
                    self._stream(plural)
                elif plural == "log":
                    self._send(200, api.log)
                else:
                    self._send(200, {"items": api.objects[plural], "metadata": {"resourceVersion": "1"}})

            def do_PATCH(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                url = urlsplit(self.path)
                api.patches.append({"path": url.path, "query": parse_qs(url.query), "body": body})
                self._send(200, api.objects["mlmodels"][0])

            def _send(self, code: int, body: dict[str, Any] | str) -> None:
                data = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(code)
                self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _stream(self, plural: str) -> None:
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                api.watching.release()
                self.close_connection = True
                for data in api.told(plural):
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
                    self.close_connection = bool(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        for stream in self.events.values():
            stream.put(None)
            stream.put(None)
        self.server.shutdown()
        self.server.server_close()

    def told(self, plural: str) -> Iterator[bytes]:
        """The lines of one watch; an empty one last, unless its connection is lost ("DROP")."""
        while (event := self.events[plural].get()) is not None:
            if event["type"] == "DROP":
                return
            yield json.dumps(event).encode() + b"\n"
            if event["type"] == "ERROR":
                break
        yield b""

    def hold(self, moment: str) -> None:
        """The cluster is at `moment` from the start."""
        model, versions = objects.LIFE[moment]
        self.objects = {"mlmodels": [_stored(model)], "modelversions": [_stored(v) for v in versions]}

    def reach(self, moment: str) -> None:
        """The cluster moves on to `moment`: versions first, as the operator writes them."""
        model, versions = objects.LIFE[moment]
        for item in versions:
            self.events["modelversions"].put({"type": "MODIFIED", "object": _stored(item)})
        self.events["mlmodels"].put({"type": "MODIFIED", "object": _stored(model)})


def _stored(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "metadata": {**item["metadata"], "resourceVersion": "2"}}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    fake = FakeApi()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def kubeconfig(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return write_kubeconfig(tmp_path, f"http://127.0.0.1:{api.server.server_address[1]}", monkeypatch)


def write_kubeconfig(folder: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
        "current-context": "test",
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(path))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.fixture(autouse=True)
def keep_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Refusal:
    """What the API server says and what the user reads."""

    reason: str
    answer: Answer
    cause: str
    next_action: str


REFUSALS = [
    Refusal(
        "without the CRD the API server knows no such path",
        refusal(404, "NotFound", "the server could not find the requested resource"),
        "the CRDs of mlplatform.dev are missing",
        "helm upgrade --install mlplatform charts/mlplatform",
    ),
    Refusal(
        "a missing permission is named with the role that gives it",
        refusal(403, "Forbidden", 'User "ann" cannot list resource "mlmodels"'),
        "not allowed to list mlmodels in namespace 'default': User \"ann\" cannot list",
        "kubectl create rolebinding",
    ),
    Refusal(
        "expired credentials are the kubeconfig's matter",
        refusal(401, "Unauthorized", "Unauthorized"),
        "not logged in",
        "renew the credentials",
    ),
    Refusal(
        "a sick API server is no fault of the model",
        refusal(500, "InternalError", "etcdserver: request timed out"),
        "etcdserver: request timed out",
        "/readyz",
    ),
]


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.reason)
def test_refusals(case: Refusal, api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.refuse = case.answer
    assert main(["status", "adult-income"]) == 1, case.reason
    told = capsys.readouterr().err
    assert case.cause in told, case.reason
    assert case.next_action in told.split("next:")[1], case.reason


def test_a_cluster_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_kubeconfig(tmp_path, "http://127.0.0.1:1", monkeypatch)
    assert main(["status"]) == 1
    told = capsys.readouterr().err
    assert "cannot reach the cluster at http://127.0.0.1:1" in told
    assert "kubectl cluster-info" in told


def test_a_cluster_that_speaks_no_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        write_kubeconfig(tmp_path, url, monkeypatch)
        assert main(["status"]) == 1
        thread.join()
    assert f"cannot reach the cluster at {url}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reason", "arguments", "hint"),
    [
        ("a kubeconfig that is not there", ["status", "--kubeconfig", "/nowhere/config"], "set KUBECONFIG"),
        ("a context that the kubeconfig lacks", ["status", "--context", "moon"], "kubectl config get-contexts"),
    ],
)
@pytest.mark.usefixtures("kubeconfig")
def test_kubeconfig_mistakes(reason: str, arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2, reason
    assert hint in capsys.readouterr().err, reason


@pytest.mark.parametrize(
    ("reason", "content"),
    [
        ("YAML that is cut off", b"clusters: ["),
        ("no YAML at all", b"\xff\xfe\x00"),
        ("YAML of another shape", b"hello"),
        ("a folder", None),
    ],
)
def test_a_kubeconfig_that_is_none(
    reason: str, content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    assert main(["status", "--kubeconfig", str(path)]) == 2, reason
    cause, next_action = capsys.readouterr().err.splitlines()
    assert cause.startswith(f"error: no usable kubeconfig: cannot read {path}: "), reason
    assert next_action == "next:  correct that file, or name another one with KUBECONFIG or --kubeconfig", reason


@pytest.mark.parametrize(
    ("reason", "arguments", "told"),
    [
        ("no command", [], "COMMAND"),
        ("an unknown end", ["watch", "m", "--until", "done"], "invalid choice"),
        ("a duration without a unit", ["watch", "m", "--timeout", "5"], "write it like 90s"),
        ("a duration past all dates", ["watch", "m", "--timeout", "999999999h"], "is longer than"),
        ("digits without end", ["watch", "m", "--timeout", "999999999999999h"], "write it like 90s"),
        (
            "a key that no version can keep",
            ["retrain", "m", "--key", "k" * (contract.TRIGGER_LIMIT + 1)],
            "257 characters, at most 256 are kept; choose a shorter key",
        ),
        ("another kind of object", ["status", "pod/m"], "write NAME or mlmodel/NAME"),
        ("features that are no JSON", ["predict", "m", "--features", "{"], "not JSON"),
        ("features that are neither object nor list", ["predict", "m", "--features", "3"], "[value, ...]"),
    ],
)
def test_usage_mistakes(reason: str, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2, reason
    assert told in capsys.readouterr().err, reason


@pytest.mark.parametrize(
    ("reason", "arguments", "namespace"),
    [
        ("after the command", ["status", "-n", "shop"], "shop"),
        ("before the command", ["-n", "shop", "status"], "shop"),
        ("the one that stands next to its command counts", ["-n", "shop", "status", "-n", "bank"], "bank"),
        ("nowhere", ["status"], None),
    ],
)
def test_cluster_flags_may_stand_before_and_after_the_command(
    reason: str, arguments: list[str], namespace: str | None
) -> None:
    assert parser().parse_args(arguments).namespace == namespace, reason
    assert parser().parse_args(["--no-color", *arguments]).color is False, reason
    assert parser().parse_args([*arguments, "--no-color"]).color is False, reason
    assert parser().parse_args(arguments).color is True, reason


@pytest.mark.usefixtures("kubeconfig")
def test_one_model_and_all_namespaces_exclude_each_other(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.hold("serving")
    assert main(["status", "adult-income", "-A"]) == 2
    assert "-A asks for all models" in capsys.readouterr().err


@pytest.mark.usefixtures("kubeconfig")
def test_one_model_has_a_wide_row_too(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.hold("rolling")
    assert main(["status", "-o", "wide"]) == 0
    whole = capsys.readouterr().out
    assert main(["status", "adult-income", "-o", "wide"]) == 0
    assert capsys.readouterr().out.split()[:10] == whole.split()[:10]


@pytest.mark.parametrize(
    "arguments", [["status"], ["history", "adult-income", "-o", "json"], ["watch", "adult-income"]]
)
def test_a_reader_that_has_gone_is_no_failure(arguments: list[str], api: FakeApi, kubeconfig: Path) -> None:
    api.hold("serving")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    theirs, ours = os.pipe()
    os.close(theirs)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "mlplatform.cli.main", *arguments],
            stdout=ours, stderr=subprocess.PIPE, env={**environment, "KUBECONFIG": str(kubeconfig)},
            check=False, timeout=60,
        )  # fmt: skip
    finally:
        os.close(ours)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize("command", ["status", "watch", "history", "retrain", "retry", "rollback"])
def test_no_such_model(command: str, api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.hold("serving")
    for reason, name, hint in (
        ("a near miss is offered", "adult-incom", "did you mean 'adult-income'?"),
        ("a far miss lists what there is", "sentiment", "there are: adult-income"),
    ):
        assert main([command, name]) == 1, reason
        told = capsys.readouterr().err
        assert f"no MLModel '{name}' in namespace 'default'" in told, reason
        assert hint in told, reason


@pytest.mark.usefixtures("kubeconfig")
def test_status_prints_one_line_a_model(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.hold("rolling")
    assert main(["status"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["NAME", "READY", "STAGE"]
    assert row.split()[:7] == ["adult-income", "Unknown", "RollingOut", "v1", "v2", "25", "%"]


@pytest.mark.usefixtures("kubeconfig")
def test_a_wide_table_is_whole_in_a_pipe(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.hold("rolling")
    assert main(["status", "-o", "wide"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[-3:] == ["ROC_AUC", "URL", "MESSAGE"]
    assert row.rstrip().endswith(f"{objects.URL}   v2 takes 25 % of the traffic")


@pytest.mark.usefixtures("kubeconfig")
def test_status_of_one_model_for_programs(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.hold("serving")
    assert main(["status", "mlmodel/adult-income", "-o", "json"]) == 0
    as_json = json.loads(capsys.readouterr().out)
    assert main(["status", "adult-income", "-o", "yaml"]) == 0
    as_yaml = yaml.safe_load(capsys.readouterr().out)
    as_yaml["ageSeconds"] = as_json["ageSeconds"]
    assert as_json == as_yaml
    assert as_json["outcome"] == "Ready"
    assert as_json["version"]["metrics"]["roc_auc"] == 0.9131
    assert [c["name"] for c in as_json["version"]["candidates"] if c["selected"]] == ["int8-dynamic"]


@pytest.mark.usefixtures("kubeconfig", "api")
def test_status_of_an_empty_namespace_says_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    assert "kubectl apply -f examples/adult-income/mlmodel.yaml" in capsys.readouterr().out


@pytest.mark.usefixtures("kubeconfig")
def test_retrain_sets_the_annotation_and_nothing_else(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.hold("serving")
    assert main(["retrain", "adult-income", "--key", "fresh-data"]) == 0
    assert api.patches == [
        {
            "path": f"{PREFIX}/namespaces/default/mlmodels/adult-income",
            "query": {"fieldManager": ["mlplatform-cli"]},
            "body": {"metadata": {"annotations": {"mlplatform.dev/retrain": "fresh-data"}}},
        }
    ]
    assert "kubectl mlmodel watch adult-income" in capsys.readouterr().out


@pytest.mark.usefixtures("kubeconfig")
def test_retry_asks_for_another_attempt_at_the_stage_that_failed(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.hold("failed")
    for version, asked in (([], objects.V2), (["--version", "v2"], objects.V2)):
        assert main(["retry", "adult-income", *version]) == 0
        assert api.patches.pop() == {
            "path": f"{PREFIX}/namespaces/default/modelversions/{asked}",
            "query": {"fieldManager": ["mlplatform-cli"]},
            "body": {"metadata": {"annotations": {"mlplatform.dev/retry": "train/2"}}},
        }
        assert "attempt 2 at train is asked for" in capsys.readouterr().out


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize(
    ("reason", "arguments", "cause", "hint"),
    [
        ("nothing has failed", ["--version", "v1"], "no stage of adult-income-1a2b3c4d has failed", "retrain"),
        ("there is no such version", ["--version", "v9"], "adult-income has no version 'v9'", objects.V1),
    ],
)
def test_there_is_nothing_to_retry(
    reason: str, arguments: list[str], cause: str, hint: str, api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.hold("failed")
    assert main(["retry", "adult-income", *arguments]) == 1, reason
    told = capsys.readouterr().err
    assert cause in told, reason
    assert hint in told, reason
    assert api.patches == [], reason


ID = {"name": "id", "kind": "number", "missing": 0.0, "distinct": 900, "use": "left out", "why": "it numbers the rows"}
AGE = {"name": "age", "kind": "number", "missing": 0.125, "distinct": 73, "use": "feature"}


def trained(api: FakeApi, *lines: str, pods: int = 1) -> None:
    """V2 is trained by `pods` pods, of which the last one's log has these lines."""
    api.hold("replaced")
    api.objects["pods"] = [{"metadata": {"name": f"{objects.V2}-train-{i}"}} for i in range(pods)]
    api.log = "\n".join(lines)


@pytest.mark.usefixtures("kubeconfig")
def test_data_shows_every_column_of_the_log(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"column {json.dumps(column)}" for column in ({**ID, "use": "feature"}, ID, AGE)]
    trained(api, "rows=900 train=630", *lines, "column in nobody's JSON", "epoch=1/2")
    assert main(["data", "adult-income"]) == 0
    assert f"/api/v1/namespaces/default/pods/{objects.V2}-train-0/log" in api.asked
    heads, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert heads == ["COLUMN", "KIND", "MISSING", "DISTINCT", "USE", "WHY"]
    assert rows == [
        ["id", "number", "0.0%", "900", "left", "out", "it", "numbers", "the", "rows"],
        ["age", "number", "12.5%", "73", "feature"],
    ], "of a training that began again, what it said last"
    assert main(["data", "adult-income", "--version", "v2", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": "adult-income", "version": objects.V2, "columns": [ID, AGE]}


@pytest.mark.usefixtures("kubeconfig")
def test_data_shows_what_is_unusual_where_the_pod_is_gone(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    trained(api, pods=0)
    train = next(
        s for v in api.objects["modelversions"] if v["metadata"]["name"] == objects.V2 for s in v["status"]["stages"]
    )
    train["details"] = {**train.get("details", {}), "columns": ["id: left out: it numbers the rows"]}
    train["report"] = "s3://models/train/report.json"
    assert main(["data", "adult-income"]) == 0
    told = capsys.readouterr().out
    assert "every column is in s3://models/train/report.json" in told
    assert "id: left out: it numbers the rows" in told
    assert main(["data", "adult-income", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["unusual"] == ["id: left out: it numbers the rows"]


def test_data_of_a_report_asks_no_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    columns = {column["name"]: {k: v for k, v in column.items() if k != "name"} for column in (ID, AGE)}
    path.write_text(json.dumps({"model": "m", "version": "m-1", "data": {"columns": columns}}))
    assert main(["data", "--report", str(path), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["columns"] == [ID, AGE]
    assert main(["data", "m", "--report", str(path)]) == 2
    path.write_text(json.dumps({"model": "m", "version": "m-1", "data": {"columns": {"pay": "a remark"}}}))
    assert main(["data", "--report", str(path)]) == 2, "of a release that described no columns"
    assert "is no report of a training that describes its columns" in capsys.readouterr().err


def test_without_a_client_of_the_api_server_reports_are_shown_and_the_rest_says_what_to_install(tmp_path: Path) -> None:
    """`mlplatform[run]` brings none."""
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"model": "m", "version": "m-1", "data": {"columns": {"age": dict(AGE, name=None)}}}))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = "import sys; sys.modules['kubernetes'] = None; from mlplatform.cli.main import main; sys.exit(main())"
        return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)

    shown, asked = run("data", "--report", str(path)), run("status")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert asked.returncode == 1
    assert asked.stderr.startswith("error: the Python package kubernetes is not installed")
    assert "next:  pip install" in asked.stderr


ROLLBACK = "mlplatform.dev/rollback"


def replaced(api: FakeApi) -> Answer:
    """V2 has replaced V1; returns the way back that is asked for then, and what comes of it."""
    model, versions = objects.LIFE["replaced"]
    api.objects = {"mlmodels": [_stored(model)], "modelversions": [_stored(v) for v in versions]}
    asked = {**model["metadata"], "annotations": {ROLLBACK: f"{objects.V2}->{objects.V1}"}, "resourceVersion": "3"}
    return 200, {**model, "metadata": asked}


@pytest.mark.usefixtures("kubeconfig")
def test_rollback_asks_for_the_version_before(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    replaced(api)
    assert main(["rollback", "adult-income"]) == 0
    assert api.patches == [
        {
            "path": f"{PREFIX}/namespaces/default/mlmodels/adult-income",
            "query": {"fieldManager": ["mlplatform-cli"]},
            "body": {"metadata": {"annotations": {ROLLBACK: f"{objects.V2}->{objects.V1}"}}},
        }
    ]
    first, second, third = capsys.readouterr().out.splitlines()
    serves = f"until then v2 ({objects.V2}) serves"
    assert first == f"mlmodel/adult-income: all the traffic goes to v1 ({objects.V1}) once its pods are ready; {serves}"
    assert "not tried again until another version is asked for" in second
    assert third == "see how far it is: kubectl mlmodel status adult-income -n default"


@pytest.mark.usefixtures("kubeconfig")
def test_rollback_for_programs(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    replaced(api)
    assert main(["rollback", "adult-income", "--to", "v1", "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["from"], told["to"], told["done"]) == (objects.V2, objects.V1, False)


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize(
    ("reason", "done", "code", "told"),
    [
        ("it was carried out", True, 0, f"mlmodel/adult-income: {objects.V1} takes all the traffic"),
        ("the operator has refused it", False, 1, "taken off again before it was carried out"),
    ],
)
def test_rollback_waits(reason: str, done: bool, code: int, told: str, api: FakeApi, capsys: Any) -> None:  # noqa: FBT001  a table's column
    _, asked = replaced(api)
    api.objects["mlmodels"] = [asked]
    model, _ = objects.LIFE["gone back" if done else "replaced"]

    def carry_out() -> None:
        api.watching.acquire()
        api.watching.acquire()
        api.events["mlmodels"].put({"type": "MODIFIED", "object": {**_stored(model)}})

    thread = threading.Thread(target=carry_out)
    thread.start()
    assert main(["rollback", "adult-income", "--wait", "--timeout", "20s"]) == code, reason
    thread.join()
    printed = capsys.readouterr()
    assert told in printed.out + printed.err, reason


@pytest.mark.usefixtures("kubeconfig")
def test_rollback_waits_no_longer_than_it_was_told(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    _, asked = replaced(api)
    api.objects["mlmodels"] = [asked]
    assert main(["rollback", "adult-income", "--wait", "--timeout", "1s"]) == 124
    assert "--timeout passed; adult-income in namespace 'default' is" in capsys.readouterr().err


def follow(api: FakeApi, moments: list[str]) -> threading.Thread:
    """Plays moments once the plugin watches both kinds."""

    def play() -> None:
        api.watching.acquire()
        api.watching.acquire()
        for moment in moments:
            api.reach(moment)

    thread = threading.Thread(target=play)
    thread.start()
    return thread


@pytest.mark.usefixtures("kubeconfig")
def test_watch_tells_every_change_as_a_line_and_ends(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.hold("training")
    player = follow(api, ["optimizing", "serving"])
    assert main(["watch", "adult-income", "--timeout", "30s"]) == 0
    player.join()
    lines = [line[10:] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == f"v1 is {objects.V1}"
    assert "v1 train succeeded after 48s: val_roc_auc 0.9152, 9 epochs, 34,189 rows, 2 processes" in lines
    assert lines[-1] == f"ready: {objects.URL}"
    assert len(lines) == len(set(lines)), "a line is said once"


@pytest.mark.usefixtures("kubeconfig")
def test_watch_streams_json_lines(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.hold("training")
    player = follow(api, ["rolling", "failed"])
    assert main(["watch", "adult-income", "-o", "json", "--timeout", "30s"]) == 1
    player.join()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["outcome"] == "Progressing"
    assert lines[-1]["failure"]["reason"] == "OOMKilled"
    assert lines[-1]["traffic"] == {**lines[-1]["traffic"], "stable": "v1", "weight": 0}


@pytest.mark.usefixtures("kubeconfig")
def test_watch_gives_up_after_its_timeout(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.hold("training")
    assert main(["watch", "adult-income", "--timeout", "1s"]) == 124
    told = capsys.readouterr().err
    assert "adult-income in namespace 'default' is Progressing" in told
    assert "go on: kubectl mlmodel watch adult-income -n default" in told


@pytest.mark.usefixtures("kubeconfig")
def test_watch_waits_for_what_is_held_up(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.hold("blocked")
    player = follow(api, ["training", "serving"])
    assert main(["watch", "adult-income", "--timeout", "30s"]) == 0
    player.join()
    lines = [line[10:] for line in capsys.readouterr().out.splitlines()]
    assert f"held up in train: ImagePull: {objects.NO_IMAGE.message}" in lines
    assert lines[-1] == f"ready: {objects.URL}"


@pytest.mark.usefixtures("kubeconfig")
def test_watch_does_not_end_before_the_version_tells_what_the_model_does(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.hold("blocked")
    api.events["mlmodels"].put({"type": "MODIFIED", "object": _stored(objects.LIFE["serving"][0])})
    later = threading.Timer(0.5, api.reach, ["serving"])
    later.start()
    assert main(["watch", "adult-income", "--timeout", "30s"]) == 0
    later.join()
    lines = [line[10:] for line in capsys.readouterr().out.splitlines()]
    assert "v1 train succeeded after 48s: val_roc_auc 0.9152, 9 epochs, 34,189 rows, 2 processes" in lines
    assert lines[-1] == f"ready: {objects.URL}"


@pytest.mark.usefixtures("kubeconfig")
def test_watch_ends_when_the_operator_is_refused(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.hold("applied")
    player = follow(api, ["refused"])
    assert main(["watch", "adult-income", "--timeout", "30s"]) == 1
    player.join()
    assert f"failed: Forbidden: {objects.NOT_ALLOWED}" in capsys.readouterr().out


@pytest.mark.usefixtures("kubeconfig")
def test_watch_gives_up_where_the_user_may_only_list(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "_RETRY_SECONDS", (0.01,) * 4)
    api.hold("training")
    api.refuse_watch = refusal(403, "Forbidden", 'User "ann" cannot watch resource "mlmodels"')
    assert main(["watch", "adult-income", "--timeout", "10s"]) == 1
    assert "not allowed to watch" in capsys.readouterr().err
    assert len(api.asked) <= 1 + 2 * 2 * 5, "a list and a watch a kind and attempt, no more"


@dataclass(frozen=True)
class Loss:
    """What a connection does before it is lost, and why the watch goes on after many of them."""

    reason: str
    steady_seconds: float
    delivers: bool


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize(
    "case",
    [
        Loss("each connection brought something", 1000.0, delivers=True),
        Loss("each connection held for long, though nothing happened", 0.0, delivers=False),
    ],
    ids=lambda case: case.reason,
)
def test_watch_survives_many_lost_connections(case: Loss, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_RETRY_SECONDS", (0.01,) * 4)
    monkeypatch.setattr(cluster, "_STEADY_SECONDS", case.steady_seconds)
    api.hold("training")
    stored = {"mlmodels": api.objects["mlmodels"][0], "modelversions": api.objects["modelversions"][0]}

    def lose() -> None:
        for _ in range(8):
            api.watching.acquire()
            api.watching.acquire()
            for plural, stream in api.events.items():
                if case.delivers:
                    stream.put({"type": "MODIFIED", "object": stored[plural]})
                stream.put({"type": "DROP"})
        api.watching.acquire()
        api.watching.acquire()
        api.reach("serving")

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    assert main(["watch", "adult-income", "--timeout", "30s"]) == 0, case.reason
    thread.join()


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize(("until", "code"), [("deleted", 0), ("ready", 1)])
def test_watch_ends_when_the_model_is_deleted(until: str, code: int, api: FakeApi) -> None:
    api.hold("serving" if until == "deleted" else "training")

    def delete() -> None:
        api.watching.acquire()
        api.watching.acquire()
        api.events["mlmodels"].put({"type": "DELETED", "object": api.objects["mlmodels"][0]})

    thread = threading.Thread(target=delete)
    thread.start()
    assert main(["watch", "adult-income", "--until", until, "--timeout", "30s"]) == code
    thread.join()


@pytest.mark.usefixtures("kubeconfig")
def test_watch_lists_again_when_its_resource_version_has_expired(api: FakeApi) -> None:
    api.hold("training")

    def expire() -> None:
        api.watching.acquire()
        api.watching.acquire()
        api.hold("serving")
        for stream in api.events.values():
            stream.put({"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}})

    thread = threading.Thread(target=expire)
    thread.start()
    assert main(["watch", "adult-income", "--timeout", "30s"]) == 0
    thread.join()


@pytest.mark.usefixtures("kubeconfig")
def test_watch_asks_the_server_a_constant_number_of_times(api: FakeApi) -> None:
    api.hold("training")
    assert main(["watch", "adult-income", "--timeout", "2s"]) == 124
    assert len(api.asked) == 5, "one look at the names, then one list and one watch a kind: no polling"


@dataclass(frozen=True)
class Terminal:
    """A way to run the live view in a terminal and what its end must look like."""

    reason: str
    environment: dict[str, str]
    send: signal.Signals
    live: bool


TERMINALS = [
    Terminal("Ctrl-C gives the cursor back", {}, signal.SIGINT, live=True),
    Terminal("so does SIGTERM", {}, signal.SIGTERM, live=True),
    Terminal("NO_COLOR means plain lines, even in a terminal", {"NO_COLOR": "1"}, signal.SIGINT, live=False),
]


AS_IN_A_TERMINAL = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits it ignored
from mlplatform.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("case", TERMINALS, ids=lambda case: case.reason)
def test_interrupted_terminal_is_left_clean(case: Terminal, api: FakeApi, kubeconfig: Path) -> None:
    api.hold("training")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "TERM": "xterm-256color", **case.environment}
    if not case.environment:
        environment.pop("NO_COLOR", None)
    program = subprocess.Popen(
        [sys.executable, "-c", AS_IN_A_TERMINAL, "watch", "adult-income"],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    try:
        screen = read_until(ours, lambda text: "train" in text)
        program.send_signal(case.send)
        screen += read_until(ours, lambda _text: False)
        assert program.wait(timeout=20) == 130, case.reason
    finally:
        program.kill()
        program.wait()
        os.close(ours)
    assert ("\x1b[?25l" in screen) is case.live, case.reason
    if case.live:
        assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l"), case.reason
    else:
        assert "\x1b" not in screen, case.reason
    assert "Traceback" not in screen


READ_SECONDS = 120.0


def read_until(descriptor: int, enough: Callable[[str], bool]) -> str:
    """Reads a terminal until `enough` or until its other side is closed."""
    text = ""
    while not enough(text):
        assert select.select([descriptor], [], [], READ_SECONDS)[0], f"nothing new on the terminal after {text!r}"
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # Linux reports the closed other side of a pty as EIO
            break
        if not data:
            break
        text += data.decode()
    return text
