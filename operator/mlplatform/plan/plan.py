"""What a plan consists of.

Filled by `plan.version` and `plan.model`; carried out by `mlplatform.reconciler`
in the order of the fields, so that a crash between two writes loses nothing:
what `cleanup` destroys, `status` has recorded before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, is_dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from mlplatform import api
from mlplatform.actions import Event, Write
from mlplatform.conditions import Book
from mlplatform.snapshot import Object, Refusal, status_of

ADD_ON_RETRY: Final = timedelta(seconds=15)
"""How often a kind that the API server does not serve is looked for again."""

PROXIES_LEARN: Final = timedelta(seconds=10)
"""How long a weight may take to reach every proxy of the mesh: no pod goes sooner than that after its last request."""


LEFTOVERS: Final = "CleanupFailing"
"""The condition that tells of a cleanup that is refused, in a status that has it then only: nothing that serves waits for it."""


@dataclass(slots=True)
class Plan:
    """What to do now, and when to look again if nothing else happens.

    Attributes:
        traffic: Where requests go, a chain: one that is refused stops those after it.
        writes: Children to make or change, each on its own: none waits for another, and all are tried.
        status: The whole next status as JSON; written only when it differs.
        cleanup: What is stopped or deleted once the status is written and nothing was refused, each on its own.
        events: What the status tells anew, to be posted once it is written; what is done, the writes themselves say.
        look_again: When time alone may change the plan; None when only the cluster can.
    """

    traffic: list[Write] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    status: Object = field(default_factory=dict)
    cleanup: list[Write] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    look_again: datetime | None = None

    def look(self, when: datetime | None) -> None:
        """Asks to look again at `when`, or earlier if that was asked before."""
        if when is not None and (self.look_again is None or when < self.look_again):
            self.look_again = when


def status_json(status: api.ModelVersionStatus | api.MLModelStatus) -> Object:
    """The status as it is written: zeros and required fields stay, other fields only with something in them."""
    compact: Object = _compact(status)
    return compact


def conditions_json(conditions: tuple[api.Condition, ...]) -> list[Object]:
    """Conditions as a status holds them."""
    return [_compact(c) for c in conditions]


def leftovers(obj: Object, refusals: Iterable[Refusal], now: datetime) -> tuple[Object, list[Event]]:
    """The status with what its cleanup was refused, as a plan keeps it from then on; and the event of that, once."""
    status, told = status_of(obj), next((refusal for refusal in refusals if refusal.told), None)
    book = Book(status.get("conditions") or (), obj["metadata"].get("generation", 0), now)
    for kind in (c["type"] for c in status.get("conditions") or () if c["type"] != LEFTOVERS):
        book.keep(kind)
    if told:
        book.set(LEFTOVERS, "True", told.reason, f"what is to stop, go on or go away is as it was: {told.message}")
    news = [Event("Warning", LEFTOVERS, c.message)] if (c := book.get(LEFTOVERS)) and book.changed(LEFTOVERS) else []
    return {**status, "conditions": conditions_json(book.conditions())}, news


def _compact(value: Any) -> Any:
    if isinstance(value, str):
        return str(value)  # an enum's member becomes its plain value
    if isinstance(value, dict):
        return {k: small for k, v in value.items() if (small := _compact(v)) not in _EMPTY}
    if isinstance(value, (list, tuple)):
        return [_compact(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        members = {name: (f, _compact(getattr(value, f.name))) for name, f in api.named(type(value)).items()}
        return {name: small for name, (f, small) in members.items() if small not in _EMPTY or api.is_required(f)}
    return value


_EMPTY: Final[tuple[object, ...]] = (None, "", [], {})
