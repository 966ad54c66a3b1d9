"""Set up one scenario in the sandbox, and derive the expected archive from what the sandbox did."""

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
from tests.chaos.model import ExpectedArchive, ExpectedImage, Finding, Flaw
from tests.chaos.scenario import DRAWN_WIDTH, Change, ImagePart, PlannedChange, Scenario

# A pause of the storage: shorter than the service waits.
PAUSE_SECONDS = 0.15
# The service guarantees to stop every upstream request within a second after its client has left.
CANCEL_TIMEOUT_SECONDS = 1.0
# Look-ups whose images are recorded; more than the service makes for one archive.
_LOOK_UPS = 20
_ADDED_BYTES = 5000


@dataclass(slots=True)
class _Shown:
    """An image as a look-up listed it."""

    image_id: str
    name: str
    status: str | None


class ChaosOrder:
    """An order of the sandbox with the faults of one scenario."""

    def __init__(self, sandbox: Sandbox, scenario: Scenario) -> None:
        self._sandbox = sandbox
        self._scenario = scenario
        self._order_id = scenario.order_id
        self._shown: list[_Shown] = []
        self._changed: dict[str, str] = {}
        self._versions: dict[str, dict[str, str]] = {}
        self._later = [change for change in scenario.changes if change.after_bytes is not None]
        self._gates = [asyncio.create_task(_release_later(gate)) for gate in _gates(scenario)]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Add the order to the sandbox, and remove it afterwards."""
        self._add_order()
        try:
            yield
        finally:
            for task in self._gates:
                task.cancel()
            for image in list(self._sandbox.orders[self._order_id].images):
                self._sandbox.remove_image(image.image_id)
            del self._sandbox.orders[self._order_id]

    def progress(self, received_bytes: int) -> None:
        """Apply the changes that are planned at this number of received bytes."""
        due = [planned for planned in self._later if (planned.after_bytes or 0) <= received_bytes]
        for planned in due:
            self._later.remove(planned)
            self._change(planned)

    async def still_running(self) -> list[RequestRecord]:
        """Return the requests to the storage that the service has not cancelled in time."""
        try:
            async with asyncio.timeout(CANCEL_TIMEOUT_SECONDS):
                while running := self._running():
                    # Evaluated whenever any request begins or ends, hence for these few only.
                    await self._sandbox.wait_until(lambda running=running: all(one.finished for one in running))  # type: ignore[misc]
        except TimeoutError:
            pass
        return self._running()

    def expected(self) -> ExpectedArchive:
        """Return what the service had to deliver, given the requests that it made."""
        scenario = self._scenario
        records = defaultdict(list)
        for record in self._requests():
            records[_image_of(record)].append(record)
        images = [
            self._expected(shown, stem, records[shown.image_id])
            for shown, stem in zip(self._shown, _stems([shown.name for shown in self._shown]), strict=True)
            if not scenario.only or shown.image_id in scenario.only
        ]
        order_causes = [_describe(one) for one in records[None] if one.fault or one.status == 429]
        if not self._shown:
            order_causes.append("the order lists no image")
        return ExpectedArchive(tuple(images), scenario.abort, scenario.manifest_always, tuple(order_causes))

    def key_leaks(self) -> list[Finding]:
        """Return the requests that sent the API key to the storage."""
        return [
            Finding(Flaw.KEY_LEAKED, _describe(one), one.image_id or "")
            for one in self._requests()
            if one.origin == "storage" and "x-api-key" in one.headers
        ]

    def _requests(self) -> list[RequestRecord]:
        records = self._sandbox.log.records
        return [one for one in records if one.order_id == self._order_id or _image_of(one) in self._versions]

    def _running(self) -> list[RequestRecord]:
        return [one for one in self._requests() if one.origin == "storage" and not one.finished]

    def _add_order(self) -> None:
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
            sandbox.on_poll(self._order_id, number, self._record_shown_images)

    def _record_shown_images(self) -> None:
        """Record the images that the order lists: those that an archive of it must have."""
        order = self._sandbox.orders[self._order_id]
        self._shown = [] if order.is_merging else [_Shown(i.image_id, i.name, i.status) for i in order.images]

    def _all_versions(self, part: ImagePart) -> dict[str, str]:
        """Return the SHA-256 of each version that the storage may offer, by its fault."""
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
        image_id = self._scenario.images[planned.position].image_id
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
                self._add(planned.position)

    def _add(self, position: int) -> None:
        """Add an image to the order; it counts only if a look-up lists it."""
        image_id = str(uuid.uuid5(uuid.UUID(self._order_id), str(position)))
        image = SandboxImage(f"added {position:02}.jpg", image_id=image_id, size_bytes=_ADDED_BYTES)
        self._sandbox.add_image(self._order_id, image)
        body = self._sandbox.body(image_id)
        self._versions[image_id] = {"": hashlib.sha256(body).hexdigest()}

    def _expected(self, shown: _Shown, stem: str, records: list[RequestRecord]) -> ExpectedImage:
        versions = self._versions[shown.image_id]
        offered = {versions[one.fault or ""] for one in records if one.origin == "storage" and one.fault in versions}
        causes = [_describe(one) for one in records if one.fault or one.status == 429]
        if shown.status != "processed":
            causes.append(f"its status is {shown.status}")
        if shown.image_id in self._changed:
            causes.append(self._changed[shown.image_id])
        requests = " ".join(map(_describe, records))
        return ExpectedImage(shown.image_id, stem, frozenset(offered | {versions[""]}), tuple(causes), requests)


async def _release_later(gate: Gate) -> None:
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
    """Number repeated names; the scenario's names need no other change."""
    counts: Counter[str] = Counter()
    stems = []
    for name in names:
        stem = name.rpartition(".")[0]
        counts[stem] += 1
        stems.append(stem if counts[stem] == 1 else f"{stem}_{counts[stem]}")
    return stems


def _image_of(record: RequestRecord) -> str | None:
    if record.image_id is None and record.origin == "asset":
        # Rejected before the sandbox had found the image: the path has its id.
        return record.path.rstrip("/").rpartition("/")[2]
    return record.image_id


def _describe(record: RequestRecord) -> str:
    part = f" {requested}" if (requested := record.headers.get("Range")) else ""
    return f"[{record.origin}{part}: {record.fault or 'no fault'} {record.status or '-'}, {record.bytes_sent} B]"
