"""Puts one scenario on the sandbox's stage, and takes down what it really did: the judge's other half."""

import asyncio
import hashlib
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from service.sandbox import Fault, Gate, Kind, RequestRecord, Sandbox, SandboxImage
from service.sandbox.bodies import Body, BytesBody, ChangedBody
from tests.chaos.evidence import Asked, Expected, Finding, Flaw
from tests.chaos.scenario import DRAWN_WIDTH, Change, ImagePart, PlannedChange, Scenario

# A pause of the storage: shorter than the service waits.
PAUSE_SECONDS = 0.15
# The service promises to stop every upstream request within a second of its caller's leaving.
LETTING_GO_SECONDS = 1.0
# Of look-ups at which the order is shown; more than the service makes for one archive.
_LOOK_UPS = 20
_ADDED_BYTES = 5000


@dataclass(slots=True)
class _Shown:
    """An image as the order showed it."""

    image_id: str
    name: str
    status: str | None


class Stage:
    """One order in the sandbox, for one archive."""

    def __init__(self, sandbox: Sandbox, scenario: Scenario) -> None:
        self._sandbox = sandbox
        self._scenario = scenario
        self._order_id = scenario.order_id
        self._shown: list[_Shown] = []
        self._changed: dict[str, str] = {}
        self._versions: dict[str, dict[str, str]] = {}
        self._later = [change for change in scenario.changes if change.after_bytes is not None]
        self._gates = [asyncio.create_task(_let_go(gate)) for gate in _gates(scenario)]

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Have the order there, and nothing of it afterwards."""
        self._build()
        try:
            yield
        finally:
            for task in self._gates:
                task.cancel()
            for image in list(self._sandbox.orders[self._order_id].images):
                self._sandbox.remove_image(image.image_id)
            del self._sandbox.orders[self._order_id]

    def progress(self, received_bytes: int) -> None:
        """Let happen what was planned for when the caller has so many bytes."""
        due = [planned for planned in self._later if (planned.after_bytes or 0) <= received_bytes]
        for planned in due:
            self._later.remove(planned)
            self._change(planned)

    async def still_running(self) -> list[RequestRecord]:
        """Return the requests to the storage which the service has not let go of in time."""
        try:
            async with asyncio.timeout(LETTING_GO_SECONDS):
                while running := self._running():
                    # Asked whenever any request begins or ends: hence of these few only.
                    await self._sandbox.wait_until(lambda running=running: all(one.finished for one in running))  # type: ignore[misc]
        except TimeoutError:
            pass
        return self._running()

    def asked(self) -> Asked:
        """Return what the service had to deliver, in the light of every request it made."""
        scenario = self._scenario
        records = defaultdict(list)
        for record in self._requests():
            records[_image_of(record)].append(record)
        images = [
            self._expected(shown, stem, records[shown.image_id])
            for shown, stem in zip(self._shown, _stems([shown.name for shown in self._shown]), strict=True)
            if not scenario.only or shown.image_id in scenario.only
        ]
        order_grounds = [_words(one) for one in records[None] if one.fault or one.status == 429]
        if not self._shown:
            order_grounds.append("the order shows no image")
        return Asked(tuple(images), scenario.abort, scenario.manifest_always, tuple(order_grounds))

    def leaks(self) -> list[Finding]:
        """Return the requests which brought the API's key to the storage."""
        return [
            Finding(Flaw.KEY_LEAKED, _words(one), one.image_id or "")
            for one in self._requests()
            if one.origin == "storage" and "x-api-key" in one.headers
        ]

    def _requests(self) -> list[RequestRecord]:
        records = self._sandbox.log.records
        return [one for one in records if one.order_id == self._order_id or _image_of(one) in self._versions]

    def _running(self) -> list[RequestRecord]:
        return [one for one in self._requests() if one.origin == "storage" and not one.finished]

    def _build(self) -> None:
        scenario, sandbox = self._scenario, self._sandbox
        images = [_sandbox_image(part) for part in scenario.images]
        sandbox.add_order(images, f"Chaos {scenario.number}", order_id=self._order_id, merging=scenario.merging)
        sandbox.faults.order(self._order_id, scenario.look_ups)
        for part in scenario.images:
            sandbox.faults.script(part.image_id, part.api, origin="api")
            sandbox.faults.script(part.image_id, part.asset, origin="asset")
            sandbox.faults.script(part.image_id, part.storage, origin="storage")
            self._versions[part.image_id] = self._all_versions(part)
        for planned in scenario.changes:
            if planned.after_bytes is None:
                sandbox.on_poll(self._order_id, 1, lambda planned=planned: self._change(planned))  # type: ignore[misc]
        for number in range(1, _LOOK_UPS):
            sandbox.on_poll(self._order_id, number, self._take_picture)

    def _take_picture(self) -> None:
        """Remember what the order shows: that is what an archive of it must hold."""
        order = self._sandbox.orders[self._order_id]
        self._shown = [] if order.is_merging else [_Shown(i.image_id, i.name, i.status) for i in order.images]

    def _all_versions(self, part: ImagePart) -> dict[str, str]:
        """Return the SHA-256 of each version which the storage may offer, by the fault that offers it."""
        rendering: dict[str, Any] = {}
        for name, value in self._scenario.rendering.items():
            rendering[name] = value if name == "format" else float(value) if name == "scale" else int(value)
        plain = BytesBody(self._sandbox.body(part.image_id, **rendering))
        versions: dict[str, Body] = {"": plain}
        kinds = {fault.kind for fault in part.storage if fault is not None}
        if Kind.CHANGED in kinds:
            versions[Kind.CHANGED] = ChangedBody(plain, extra=7)
        if Kind.CHANGED_SILENTLY in kinds:
            versions[Kind.CHANGED_SILENTLY] = ChangedBody(plain)
        return {kind: hashlib.sha256(body.read(0, body.size)).hexdigest() for kind, body in versions.items()}

    def _change(self, planned: PlannedChange) -> None:
        image_id = self._scenario.images[planned.place].image_id
        self._changed[image_id] = planned.change
        match planned.change:
            case Change.REMOVED:
                self._sandbox.remove_image(image_id)
            case Change.EXPIRED:
                self._sandbox.set_status(image_id, "expired")
            case Change.PROCESSED_AGAIN:
                self._sandbox.set_status(image_id, "processing")
            case Change.ADDED:
                del self._changed[image_id]
                self._add(planned.place)

    def _add(self, place: int) -> None:
        """Let one more image join the order; it counts only if that is before the look-up is answered."""
        image_id = str(uuid.uuid5(uuid.UUID(self._order_id), str(place)))
        image = SandboxImage(f"added {place:02}.jpg", image_id=image_id, size_bytes=_ADDED_BYTES)
        self._sandbox.add_image(self._order_id, image)
        body = self._sandbox.body(image_id)
        self._versions[image_id] = {"": hashlib.sha256(body).hexdigest()}

    def _expected(self, shown: _Shown, stem: str, records: list[RequestRecord]) -> Expected:
        versions = self._versions[shown.image_id]
        offered = {versions[one.fault or ""] for one in records if one.origin == "storage" and one.fault in versions}
        grounds = [_words(one) for one in records if one.fault or one.status == 429]
        if shown.status != "processed":
            grounds.append(f"its status is {shown.status}")
        if shown.image_id in self._changed:
            grounds.append(self._changed[shown.image_id])
        seen = " ".join(map(_words, records))
        return Expected(shown.image_id, stem, frozenset(offered | {versions[""]}), tuple(grounds), seen)


async def _let_go(gate: Gate) -> None:
    await gate.reached.wait()
    await asyncio.sleep(PAUSE_SECONDS)
    gate.release()


def _gates(scenario: Scenario) -> Iterator[Gate]:
    faults: list[Fault | None] = [*scenario.look_ups]
    for image in scenario.images:
        faults += [*image.api, *image.asset, *image.storage]
    return (fault.gate for fault in faults if fault is not None and fault.gate is not None)


def _sandbox_image(part: ImagePart) -> SandboxImage:
    return SandboxImage(
        part.name,
        image_id=part.image_id,
        size_bytes=part.size,
        width=DRAWN_WIDTH,
        status=part.status,
        etags=part.etags,
        ranges=part.ranges,
        content_lengths=part.content_lengths,
        padding_bytes=part.padding_bytes,
    )


def _stems(names: list[str]) -> list[str]:
    """Number the names that repeat; the scenario's names need no other care."""
    seen: Counter[str] = Counter()
    stems = []
    for name in names:
        stem = name.rpartition(".")[0]
        seen[stem] += 1
        stems.append(stem if seen[stem] == 1 else f"{stem}_{seen[stem]}")
    return stems


def _image_of(record: RequestRecord) -> str | None:
    if record.image_id is None and record.origin == "asset":
        # Refused before the sandbox looked who it is for: the path still says it.
        return record.path.rstrip("/").rpartition("/")[2]
    return record.image_id


def _words(record: RequestRecord) -> str:
    part = f" {asked}" if (asked := record.headers.get("Range")) else ""
    return f"[{record.origin}{part}: {record.fault or 'as usual'} {record.status or '-'}, {record.bytes_sent} B]"
