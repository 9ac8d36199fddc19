"""A host of the company's own: who may ask for it, who has it when several do, and what becomes of the others."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from unit.operator.test_fleet import Server, following, until
from unit.operator_world import NAMESPACE, PLATFORM, SPEC, START, Fake, Operator, mlmodel, run

from mlplatform.fleet import Fleet
from mlplatform.plan import plan_model
from mlplatform.resources import host as hosts
from mlplatform.settings import Settings
from mlplatform.snapshot import ModelSnapshot, Object, condition, stamp
from mlplatform.store import Store

HOST = "credit.example.com"
SETTINGS = replace(PLATFORM, gateway_hosts=f"*.ml.example.com,other/x.example.com,{NAMESPACE}/{HOST}")
EARLY, LATE = stamp(START - timedelta(days=2)), stamp(START - timedelta(days=1))


def asking(name: str, host: str = HOST, namespace: str = NAMESPACE, created: str = "") -> Object:
    model = mlmodel(name, {**SPEC, "serving": {"host": host}})
    model["metadata"] |= {"namespace": namespace} | ({"creationTimestamp": created} if created else {})
    return model


def route(name: str, *own: str, namespace: str = NAMESPACE, created: str = LATE) -> Object:
    meta = {"name": name, "namespace": namespace, "creationTimestamp": created}
    given = f"{name}.{namespace}.models.local"
    return {"kind": "VirtualService", "metadata": meta, "spec": {"hosts": [given, name, *own], "http": []}}


def ingress(name: str = "web", namespace: str = "shop", created: str = EARLY, *names: str) -> Object:
    meta = {"name": name, "namespace": namespace, "creationTimestamp": created}
    return {"kind": "Ingress", "metadata": meta, "spec": {"rules": [{"host": h} for h in names or (HOST,)]}}


def told(model: Object, settings: Settings = SETTINGS, **seen: Any) -> tuple[str, str, str]:
    status = plan_model(ModelSnapshot(model=model, **seen), settings, START).status
    c = condition({"status": status}, "HostAssigned")
    assert (status["url"] == f"http://{HOST}") == (c["status"] == "True" and model["spec"]["serving"]["host"] == HOST)
    return c["status"], c["reason"], c["message"]


@pytest.mark.parametrize(
    ("reason", "host", "namespace", "entries", "part"),
    [
        ("it is listed for the namespace", HOST, "default", f"default/{HOST}", ""),
        ("or for all", HOST, "default", f"*/{HOST}", ""),
        ("likewise", HOST, "default", f"a.b,{HOST}", ""),
        ("by its ending", HOST, "default", "*.example.com", ""),
        ("not the ending alone", "example.com", "default", "*.example.com", "but *.example.com. Choose another"),
        ("nor half a label of it", "notexample.com", "default", "*.example.com", "not accept notexample.com"),
        ("another team's", HOST, "thieves", f"default/{HOST},thieves/x.y",
         f"not accept {HOST} in namespace thieves, but thieves/x.y. Choose another, or have whoever runs it add thieves/{HOST} to gateway.hosts"),
        ("nothing is listed", HOST, "default", "", "but none"),
        ("what another model has by itself", "victim.team.models.local", "default", "*.models.local", "has the form <model>.<namespace>.models.local"),
        ("be there such a model or not", "victim.team.models.local", "default", "victim.team.models.local", "Take it out"),
        ("its own, too", "adult.default.models.local", "default", "*.models.local", "which each model has by itself"),
        ("a shorter one, as certificates like them", "credit.models.local", "default", "*.models.local", ""),
    ],
)  # fmt: skip
def test_who_may_ask_for_a_host(reason: str, host: str, namespace: str, entries: str, part: str) -> None:
    status, why, message = told(asking("adult", host, namespace), replace(SETTINGS, gateway_hosts=entries))
    assert (status, why) == (("False", "HostNotAccepted") if part else ("True", "Assigned")), reason
    assert part in message, reason


@pytest.mark.parametrize(
    ("reason", "mine", "claims", "holder"),
    [
        ("nobody else", (), [], ""),
        ("an older one", (), [asking("zoo", created=EARLY)], "MLModel default/zoo"),
        ("a younger one", (), [asking("zoo", created=stamp(START))], ""),
        ("as old: by the name", (), [asking("aaa", created=LATE)], "MLModel default/aaa"),
        ("as old: by the name", (), [asking("zoo", created=LATE)], ""),
        ("a younger one that has it", (), [asking("zoo", created=stamp(START)), route("zoo", HOST)], "default/zoo"),
        ("an older one that only asks", (HOST,), [asking("zoo", created=EARLY)], ""),
        ("both have it: the older", (HOST,), [asking("zoo", created=EARLY), route("zoo", HOST)], "MLModel default/zoo"),
        ("both have it: the older", (HOST,), [asking("zoo", created=stamp(START)), route("zoo", HOST, created=stamp(START))], ""),
        ("one that may not have it", (), [asking("zoo", namespace="thieves", created=EARLY)], ""),
        ("one that has given it up, until its route has, too", (), [route("zoo", HOST)], "VirtualService default/zoo"),
        ("an Ingress, old", (), [ingress()], "Ingress shop/web"),
        ("or new", (), [ingress(created=stamp(START))], "Ingress shop/web"),
        ("which comes too late", (HOST,), [ingress()], ""),
    ],
)  # fmt: skip
def test_who_has_a_host_keeps_it(reason: str, mine: tuple[str, ...], claims: list[Object], holder: str) -> None:
    model = asking("adult", created=LATE)
    status, why, message = told(model, claims=tuple(claims), route=route("adult", *mine))
    assert (status, why) == (("False", "HostTaken") if holder else ("True", "Assigned")), reason
    if holder:
        assert f"{holder} has {HOST}, and who has a host keeps it. Choose another, or take it out there" in message, (
            reason
        )


def live(*deeds: Any) -> Fake:
    """Two minutes for the first deed, and a pass after each."""
    fake = Fake()
    for deed in deeds:
        deed(fake)
        run(fake, Operator(fake, SETTINGS), fake.now + timedelta(minutes=5))
    return fake


def hosts_of(fake: Fake, name: str) -> list[str]:
    found: list[str] = fake.one("VirtualService", name)["spec"]["hosts"][2:]
    return found


def url(fake: Fake, name: str) -> str:
    return str(fake.one("MLModel", name)["status"]["url"])


def test_the_host_leads_to_the_model_beside_the_platforms() -> None:
    fake = live(lambda f: f.apply(asking("adult")))
    assert fake.one("VirtualService", "adult")["spec"]["hosts"] == ["adult.default.models.local", "adult", HOST]
    assert url(fake, "adult") == f"http://{HOST}"
    assert condition(fake.one("MLModel", "adult"), "Ready")["status"] == "True"
    assert fake.names("ModelVersion") == live(lambda f: f.apply(mlmodel())).names("ModelVersion"), (
        "nothing is retrained"
    )


def test_the_second_is_told_and_the_first_goes_on_unharmed() -> None:
    fake = live(lambda f: f.apply(asking("adult")), lambda f: f.apply(asking("aaa")))
    assert (hosts_of(fake, "adult"), url(fake, "adult")) == ([HOST], f"http://{HOST}")
    assert (hosts_of(fake, "aaa"), url(fake, "aaa")) == ([], "http://aaa.default.models.local"), (
        "it serves all the same"
    )
    ready, stalled = (condition(fake.one("MLModel", "aaa"), kind) for kind in ("Ready", "Stalled"))
    assert (ready["status"], ready["reason"]) == ("False", "HostTaken")
    assert ready["message"].startswith(
        f"spec.serving.host: MLModel default/adult has {HOST}, and who has a host keeps it."
    )
    assert "goes on serving" in ready["message"]
    assert stalled["reason"] == "HostTaken", "a person must act"
    assert "HostTaken" in [event.reason for name, event in fake.events if name == "aaa"]
    before = list(fake.log)
    run(fake, Operator(fake, SETTINGS), fake.now + timedelta(hours=1))
    assert fake.log == before, "they do not fight"


def test_an_older_model_that_asks_later_takes_nothing_away() -> None:
    fake = live(lambda f: f.apply(mlmodel("aaa")), lambda f: f.apply(asking("adult")), lambda f: f.apply(asking("aaa")))
    assert (hosts_of(fake, "adult"), hosts_of(fake, "aaa")) == ([HOST], [])


def test_what_is_given_up_goes_to_the_next() -> None:
    fake = live(
        lambda f: f.apply(asking("adult")),
        lambda f: f.apply(asking("aaa")),
        lambda f: f.apply(asking("adult", "new.ml.example.com")),
    )
    assert (hosts_of(fake, "adult"), hosts_of(fake, "aaa")) == (["new.ml.example.com"], [HOST])
    assert condition(fake.one("MLModel", "aaa"), "Ready")["status"] == "True"


def test_a_host_that_is_accepted_no_more_is_taken_out_of_the_route() -> None:
    fake = live(lambda f: f.apply(asking("adult")))
    run(fake, Operator(fake, PLATFORM), fake.now + timedelta(minutes=1))
    assert (hosts_of(fake, "adult"), url(fake, "adult")) == ([], "http://adult.default.models.local")


@pytest.mark.parametrize(
    ("reason", "obj", "named"),
    [
        ("what it asks for", asking("adult"), {HOST}),
        ("nothing", mlmodel(), set()),
        ("an empty one", asking("adult", ""), set()),
        ("not what the platform gives", route("adult", HOST), {HOST}),
        ("an Ingress, each", ingress("web", "shop", EARLY, "a.b", "c.d"), {"a.b", "c.d"}),
        ("one for every host", {"kind": "Ingress", "metadata": {}, "spec": {"rules": [{"http": {}}]}}, set()),
        ("one without rules", {"kind": "Ingress", "metadata": {}, "spec": {"defaultBackend": {}}}, set()),
        ("no other kind", {"kind": "Pod", "metadata": {}, "spec": {"hosts": [HOST]}}, set()),
    ],
)
def test_which_hosts_an_object_names(reason: str, obj: Object, named: set[str]) -> None:
    assert hosts.named(obj["kind"], obj) == named, reason


def revised(obj: Object, revision: int) -> Object:
    meta = {"uid": obj["metadata"]["name"], "resourceVersion": str(revision)}
    return {**obj, "metadata": {**obj["metadata"], **meta}}


def test_the_store_finds_who_names_a_host() -> None:
    store = Store()

    def put(model: str, obj: Object) -> None:
        store.put(obj["kind"], model, obj, hosts.named(obj["kind"], obj))

    put("adult", revised(asking("adult"), 1))
    put("adult", revised(route("adult", HOST), 2))
    put("", revised(ingress(), 3))
    assert [o["kind"] for o in store.claims(HOST, NAMESPACE, "zoo")] == ["Ingress", "MLModel", "VirtualService"]
    assert [o["kind"] for o in store.claims(HOST, NAMESPACE, "adult")] == ["Ingress"], "its own do not count"
    assert list(store.asking(HOST)) == [(NAMESPACE, "adult")]
    put("adult", revised(asking("adult", "new.example.com"), 4))
    store.discard("Ingress", ("shop", "web"), "web")
    assert [o["kind"] for o in store.claims(HOST, NAMESPACE, "zoo")] == ["VirtualService"]
    assert (list(store.claims("", NAMESPACE, "zoo")), list(store.asking(HOST))) == ([], [])


def test_who_waits_for_a_host_is_woken_when_it_is_given_up() -> None:
    """Be it an Ingress of somebody else's that goes: nobody looks at the clock, and none is listed for it."""
    server = Server()
    for model in (asking("adult"), asking("zoo")):
        server.apply(model)
    server.put(ingress(namespace=NAMESPACE))

    async def gone(found: Fleet) -> None:
        await until(lambda: found._synced)  # noqa: SLF001  it is nowhere to be seen
        await until(lambda: taken("adult") == "HostTaken")
        there = server.one("Ingress", "web")
        server.remove("Ingress", "web")
        found.see("Ingress", "DELETED", there)
        await until(lambda: taken("adult") == "Assigned")

    def taken(name: str) -> str:
        return str(condition(server.one("MLModel", name), "HostAssigned").get("reason"))

    following(server, gone, settings=SETTINGS)
    assert taken("zoo") == "HostTaken"
