"""What a plan may ask for: writes to objects, and events.

Made by `mlplatform.plan`, carried out by `mlplatform.cluster`; a module of its
own so that neither needs the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlplatform.snapshot import Object, name_of, namespace_of


@dataclass(frozen=True, slots=True)
class Ref:
    """An object to change or delete."""

    api_version: str
    kind: str
    namespace: str
    name: str

    @classmethod
    def to(cls, obj: Object) -> Ref:
        """The reference to that object."""
        return cls(obj["apiVersion"], obj["kind"], namespace_of(obj), name_of(obj))


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, in the past tense."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Create:
    """Creates the object unless it exists; never changes it. The event is posted once that is done, as with its kin."""

    manifest: Object
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Apply:
    """Makes the object's fields what the manifest says (server-side apply)."""

    manifest: Object
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Patch:
    """Merge-patches a few fields of an object that is there."""

    ref: Ref
    body: Object
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes the object with what it owns; nothing happens when it is gone."""

    ref: Ref
    event: Event | None = None


Write = Create | Apply | Patch | Delete
