"""What a ModelSnapshot means, worked out once.

Called by the other modules of this package that plan for an MLModel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from mlplatform import api, failures, rollout
from mlplatform.contract import ANNOTATION_ROLLBACK
from mlplatform.plan.host import Grant, decide
from mlplatform.resources import inferenceservice, modelversion, service, virtualservice
from mlplatform.rollout import Record, View
from mlplatform.settings import Settings
from mlplatform.snapshot import ModelSnapshot, Object, Refusal, annotations_of, condition, moment, status_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the snapshot means, worked out once.

    Attributes:
        snapshot: Where it comes from.
        settings: The operator's settings.
        spec: What the user wants.
        grant: What becomes of the host that the spec asks for; None when it asks for none.
        latest: Name of the version that the spec asks for.
        trigger: The retrain annotation's value.
        way_back: The rollback annotation's value; empty when nobody asks for one.
        stable: Name of the version that the apex Service selects; empty before the first promotion.
        record: The last rollout, under way or over; a time of it that a clock which jumped has left ahead is `now`.
        weights: Percentage by version, read from the mesh.
        previous: The MLModel's status as last written.
        now: The clock.
    """

    snapshot: ModelSnapshot
    settings: Settings
    spec: api.MLModelSpec
    grant: Grant | None
    latest: str
    trigger: str
    way_back: str
    stable: str
    record: Record | None
    weights: Mapping[str, int]
    previous: Object
    now: datetime

    def label(self, version: str) -> str:
        """``<name> (v<sequence>)``, for messages."""
        return f"{version} (v{self.sequence(version)})" if version in self.snapshot.versions else version

    def sequence(self, version: str) -> int:
        """The version's number for people; 0 when the version is gone."""
        return int(self.snapshot.versions.get(version, {}).get("spec", {}).get("sequence", 0))

    @property
    def host(self) -> str:
        """The model's own host; empty when it has none."""
        return self.grant.host if self.grant else ""

    @property
    def highest_sequence(self) -> int:
        """The highest number that is known to have been given; none is given twice, whatever has been deleted since."""
        told = self.previous
        entries = [told.get("stable"), told.get("rollout"), *(told.get("history") or ())]
        said = [told.get("highestSequence"), told.get("latestSequence"), *((e or {}).get("sequence") for e in entries)]
        return max([0, *map(self.sequence, self.snapshot.versions), *(int(number) for number in said if number)])

    def ready_pods(self, version: str) -> int:
        """How many pods of the version take traffic."""
        return sum(failures.ready(pod) for pod in self.snapshot.pods.get(version, ()))

    def built(self, version: str) -> bool:
        """Whether the version passed its pipeline, and can be served."""
        ready = condition(self.snapshot.versions.get(version), "Ready").get("status") == "True"
        return ready and not self.forgotten(version)

    def forgotten(self, version: str) -> bool:
        """Whether the version is on its way out, artifacts and all."""
        return version in self.snapshot.versions and modelversion.forgotten(self.snapshot.versions[version])

    @property
    def recorded(self) -> bool:
        """Whether the last rollout's outcome is in `status.history`."""
        return (
            self.record is None
            or not self.record.outcome
            or any(
                (d["version"], d["time"]) == (self.record.version, self.record.finished_at)
                for d in self.previous.get("history") or ()
            )
        )

    @property
    def rolling(self) -> bool:
        """Whether a rollout is under way."""
        return self.record is not None and not self.record.outcome

    @property
    def rejected(self) -> bool:
        """Whether the latest version was rolled back; it is not tried again while the spec stays."""
        r = self.record
        if r is None or r.outcome != "RolledBack" or r.version != self.latest:
            return False
        return r.tried in {"", rollout.attempt(self.spec)}

    @property
    def told(self) -> Refusal | None:
        """The refused write to tell of; None when nothing was refused, or it may pass by itself."""
        return next((refusal for refusal in self.snapshot.refusals if refusal.told), None)

    @property
    def standing(self) -> Refusal | None:
        """The refused write that a rollout waits for; None when it can go on."""
        kinds = {"InferenceService", "VirtualService", "Service"}
        return next((refusal for refusal in self.snapshot.refusals if refusal.kind in kinds), None)

    @property
    def candidate(self) -> str:
        """The version that traffic should move to; empty when there is none."""
        if self.latest == self.stable or self.rejected or not self.built(self.latest):
            return ""
        return self.latest

    @property
    def steps(self) -> tuple[int, ...]:
        """Percentages on the way to 100."""
        return () if self.spec.rollout.strategy == "recreate" else self.spec.rollout.steps

    def is_ready(self, version: str) -> bool:
        """Enough pods to take over: the autoscaler's lower bound, and at least one."""
        return version in self.snapshot.services and self.ready_pods(version) >= max(1, self.spec.serving.replicas.min)

    @property
    def home(self) -> str:
        """Who has the traffic that no rollout gives away: the stable version, or who stands in while that has no pod."""
        if self.ready_pods(self.stable):
            return self.stable
        rolling = self.record.version if self.record and self.rolling else ""
        answering = [version for version in {*self.weights, rolling, *self._warm} if self.ready_pods(version)]

        def rank(version: str) -> tuple[int, bool, int, str]:
            return self.weights.get(version, 0), version == rolling, self.sequence(version), version

        return max(answering, key=rank, default=self.stable)

    @property
    def _warm(self) -> set[str]:
        """Versions that once had traffic and are still served, but for those that somebody, or their rollout, decided against."""
        decided = {d["version"]: d["decision"] for d in reversed(self.previous.get("history") or ())}
        if self.record and self.record.outcome:
            decided[self.record.version] = self.record.outcome
        served = {name for name, s in self.snapshot.services.items() if "deletionTimestamp" not in s["metadata"]}
        return {version for version in served if decided.get(version) in {"Promoted", "Superseded"}}

    def sighting(self, version: str) -> failures.Sighting | None:
        """The gravest thing wrong with a version's serving pods that take no traffic, or that cannot be made."""
        pods = self.snapshot.pods.get(version, ())
        living = [pod for pod in pods if failures.living(pod)]
        # Of pods that are over, the cause counts only while no other has taken their place.
        waiting = [pod for pod in living or pods if not failures.ready(pod)]
        absent = failures.absent(self.snapshot.absent.get(version, ""), self.snapshot.model, failures.SERVING)
        worst = failures.graver(failures.worst(waiting, failures.SERVING), absent)
        return failures.steady(worst, self.previous.get("failure"))

    def trouble(self, version: str) -> str:
        """What keeps a version's pods from being Ready: the pods say it, else KServe does."""
        sighting = self.sighting(version)
        if sighting:
            return failures.sentence(sighting.failure)
        return inferenceservice.trouble(self.snapshot.services.get(version), pods=bool(self.snapshot.pods.get(version)))

    def unready_since(self, version: str) -> datetime | None:
        """When the last of the version's pods that take no traffic began to take none; None when there is no such pod."""
        waiting = [pod for pod in self.snapshot.pods.get(version, ()) if not failures.ready(pod)]
        times = [
            pod["metadata"].get("deletionTimestamp")
            or condition(pod, "Ready").get("lastTransitionTime")
            or pod["metadata"].get("creationTimestamp")
            for pod in waiting
        ]
        latest = self.now + self.spec.rollout.max_duration  # What lies further ahead, a clock that jumped has written.
        return max((time for time in map(moment, times) if time and time <= latest), default=None)

    def view(self, record: Record) -> View:
        """What the policies look at."""
        version, spec = record.version, self.spec.rollout
        pods, stable_pods = self.ready_pods(version), self.ready_pods(self.stable)
        return View(
            candidate=self.label(version),
            stable=self.label(self.stable),
            weight=self.weights.get(version, 0),
            steps=self.steps,
            interval=spec.interval,
            max_duration=spec.max_duration,
            pods=pods,
            stable_pods=stable_pods,
            stable_ready=stable_pods >= max(1, min(pods, self.spec.serving.replicas.min)),
            trouble=self.trouble(version),
            stable_trouble=self.trouble(self.stable),
            started_at=moment(record.started_at) or self.now,
            step_started_at=moment(record.step_started_at) or self.now,
            now=self.now,
            setbacks=record.setbacks,
            stands_in=self.label(self.home) if self.home not in {self.stable, version} else "",
            unready_since=self.unready_since(version),
            detour=record.detour,
        )


def gather(snapshot: ModelSnapshot, settings: Settings, spec: api.MLModelSpec, now: datetime) -> Facts:
    """Works out the facts of a snapshot whose spec has been decoded."""
    record = Record.from_json(virtualservice.record(snapshot.route))
    record = record and record.in_the_past(now)
    return Facts(
        snapshot=snapshot,
        settings=settings,
        spec=spec,
        grant=decide(snapshot, spec, settings),
        latest=modelversion.wanted(snapshot.model, spec, snapshot.versions, _taken(snapshot)),
        trigger=modelversion.trigger(snapshot.model),
        way_back=annotations_of(snapshot.model).get(ANNOTATION_ROLLBACK, ""),
        stable=_stable(snapshot, record),
        record=record,
        weights=virtualservice.weights(snapshot.route),
        previous=status_of(snapshot.model),
        now=now,
    )


def _taken(snapshot: ModelSnapshot) -> set[str]:
    """Names of versions that something still serves or tells of, whether or not they are there."""
    history = status_of(snapshot.model).get("history") or ()
    return {*snapshot.services, *(str(d["version"]) for d in history)}


def _stable(snapshot: ModelSnapshot, record: Record | None) -> str:
    """The apex Service says it. If somebody deleted that, the route's record does; then the last status."""
    if snapshot.apex is not None:
        return service.stable(snapshot.apex)
    if record is not None:
        return record.version if record.outcome == "Promoted" else record.previous
    remembered = str((status_of(snapshot.model).get("stable") or {}).get("version", ""))
    return remembered if remembered in snapshot.services else ""
