"""The books of tests/e2e/chaos.py: what was made twice, which steps there were, what the table says."""

from __future__ import annotations

from typing import Any

from e2e.chaos import Books, Row, table

V1, V2 = "adult-00000001", "adult-00000002"


def one(name: str, uid: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": uid}}


def test_what_is_seen_again_is_one_and_what_has_another_uid_was_made_twice() -> None:
    books = Books()
    for uid in ("a", "a", "b"):
        books.note("pytorchjobs", [one(f"{V1}-train", uid), one(f"{V2}-train", "c")])
    assert books.twice == [f"pytorchjobs/{V1}-train"]
    assert books.count("pytorchjobs") == 3


def test_the_steps_of_a_version_are_told_once_each() -> None:
    books = Books()
    for weight in (0, 25, 25, 50, 100):
        destinations = [
            {"destination": {"host": f"{name}-predictor.default.svc.cluster.local"}, "weight": share}
            for name, share in ((V1, 100 - weight), (V2, weight))
            if share
        ]
        books.note_route({"metadata": {"name": "adult"}, "spec": {"http": [{"route": destinations}]}})
    assert books.steps(V2) == [25, 50, 100]
    assert books.steps(V1) == [100, 75, 50]


def test_a_promotion_that_two_looks_show_is_one() -> None:
    books = Books()
    entry = {"version": V1, "decision": "Promoted", "time": "2026-01-01T00:00:00Z"}
    for history in ([entry], [entry], [{**entry, "time": "2026-01-02T00:00:00Z"}, entry]):
        books.note_history({"status": {"history": history}})
    assert books.promotions(V1) == 2


def test_the_table_has_a_row_for_everything_that_was_taken_away() -> None:
    text = table([Row("operator (killed)", 200, 0, 15, 9000, 0), Row("istiod", 1, 60, 1, 600, 0)], {"made twice": 0})
    header, _, *rows, _, ended = text.splitlines()
    assert header.startswith("| taken away")
    assert [[cell.strip() for cell in row.strip("|").split("|")][:4] for row in rows] == [
        ["operator (killed)", "200", "-", "15"],
        ["istiod", "1", "60", "1"],
    ]
    assert ended == "made twice 0"
