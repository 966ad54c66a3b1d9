"""One archive from plan to last byte, with downloads that the test scripts: no network, no clock but one deadline."""

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from service.archive.parameters import ArchiveOptions, ManifestMode, OnError
from service.archive.plan import ArchivePlan, PlannedImage, plan_archive
from service.archive.report import MANIFEST_NAME, REPORT_NAME, ReportContext
from service.archive.writer import Layout
from service.errors import ArchiveAborted, ClientStalled, FirstByteTimeout, NoImagesAvailable
from service.model import Failure, Image, Opened, Order, Outcome, Readiness, Reason
from service.streaming.archive_stream import ArchiveStream
from service.streaming.budgets import DownloadShare
from service.streaming.interfaces import StreamLimits
from tests.fakes.downloads import NEVER, CheckedBudget, Interrupted, MemoryOutput, ScriptedSource, turns

KITCHEN, HALL = b"\xff\xd8kitchen" * 50, b"\xff\xd8hall" * 70


def image_of(data: bytes, extension: str = "jpg", *, has_size: bool = True) -> list[object]:
    """Script an image that comes in three chunks."""
    third = len(data) // 3
    size = len(data) if has_size else None
    return [Opened(extension, size), data[:third], data[third : 2 * third], data[2 * third :]]


def failing(reason: Reason = Reason.TIMEOUT, *before: object) -> list[object]:
    """Script an image that fails for good."""
    return [*before, Failure(reason, "in a test", 599)]


def entries_of(data: bytes) -> dict[str, bytes]:
    """Read an archive with Python's zipfile."""
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


class Run:
    """An archive stream with everything it needs, and a record of what its observer received."""

    def __init__(
        self,
        scripts: Mapping[str, Sequence[object]],
        options: ArchiveOptions | None = None,
        *,
        readiness: dict[str, Readiness] | None = None,
        in_flight: int = 5,
        give_up_after: int = 10,
        output: MemoryOutput | None = None,
        fault_in: str | None = None,
    ) -> None:
        every = dict.fromkeys([*(readiness or {}), *scripts])
        images = [Image(key, f"{key}.heic", (readiness or {}).get(key, Readiness.READY)) for key in every]
        order = Order("order-1", "Villa Rosa", busy=False, images=images)
        # Stored, so that a piece can be recognised by the bytes of its image.
        chosen = replace(options or ArchiveOptions(), layout=Layout.STORED)
        self.plan: ArchivePlan = plan_archive(order, chosen, max_images=1000)
        self.source = ScriptedSource(scripts)
        self.output = output or MemoryOutput()
        self.counted: list[Outcome] = []
        self.granted: list[str] = []
        self.entries_opened: list[int] = []
        self.total = CheckedBudget(10**6)
        self.share = DownloadShare(64)
        self._fault_in = fault_in
        self.stream = ArchiveStream(
            self.plan,
            self.source,
            limits=StreamLimits(
                images_in_flight=in_flight,
                max_images_in_flight=in_flight,
                read_ahead_bytes=10**6,
                give_up_after=give_up_after,
            ),
            download_share=self.share,
            total_budget=self.total,
            observer=self,
            report_context=self._report_context,
        )

    def image_granted(self, image: Image) -> None:
        """Record it."""
        self._raise_fault("image_granted")
        self.granted.append(image.image_id)

    def entry_opened(self, position: int) -> None:
        """Record it."""
        self._raise_fault("entry_opened")
        self.entries_opened.append(position)

    def image_finished(self, outcome: Outcome) -> None:
        """Record it."""
        self._raise_fault("image_finished")
        self.counted.append(outcome)

    def _raise_fault(self, method: str) -> None:
        if self._fault_in == method:
            raise RuntimeError("a fault")

    def _report_context(self, outcomes: Sequence[Outcome]) -> ReportContext:
        missing = [outcome.image.image_id for outcome in outcomes if outcome.failure]
        return ReportContext("order-1", "Villa Rosa", "archive-1", {}, "2026-01-02T03:04:05Z", missing)

    @asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        """Start the stream, close it in the end, and check that nothing is left."""
        try:
            self.stream.start()
            yield
        finally:
            self.stream.close()
            assert all(download.is_over for download in self.source.opened.values())
            assert self.share.archives == 0
            self.total.check()

    async def begin(self) -> None:
        """Wait for the first byte; time is no matter."""
        await self.stream.wait_first_byte(asyncio.get_running_loop().time() + 60)

    async def pieces(self) -> list[bytes]:
        """Make the whole archive."""
        async with self.started():
            await self.begin()
            await self.stream.run(self.output)
        return self.output.pieces

    async def entries(self) -> dict[str, bytes]:
        """Make the whole archive and read it."""
        await self.pieces()
        assert len(self.output.data) == self.stream.bytes_out
        return entries_of(self.output.data)

    @property
    def failures(self) -> dict[str, Reason]:
        """The reasons of what failed, by image id, in the order in which they became certain."""
        outcomes = self.stream.outcomes
        return {outcome.image.image_id: outcome.failure.reason for outcome in outcomes if outcome.failure}


async def test_whole_archive() -> None:
    """All images are in it bit for bit under their types' extensions, and nothing else is."""
    run = Run({"kitchen": image_of(KITCHEN), "hall": image_of(HALL, "png")})

    assert await run.entries() == {"kitchen.jpg": KITCHEN, "hall.png": HALL}
    assert (run.stream.downloaded, run.stream.failed) == (2, 0)
    assert run.counted == run.stream.outcomes
    assert run.granted == ["kitchen", "hall"]
    assert run.entries_opened == [0, 1]
    assert [(o.position, o.attempts, o.sha256, o.failure) for o in run.counted] == [
        (0, 1, None, None),
        (1, 1, None, None),
    ]
    assert [o.entry.size for o in run.counted if o.entry] == [len(KITCHEN), len(HALL)]


async def test_first_image_bytes_come_as_they_are() -> None:
    """The local header is the first piece, then the image's own chunks follow one by one, then its descriptor."""
    script = image_of(KITCHEN)
    pieces = await Run({"a": script}).pieces()

    assert pieces[0].startswith(b"PK\x03\x04")
    assert pieces[1:4] == script[1:]
    assert pieces[4].startswith(b"PK\x07\x08")
    assert pieces[5].startswith(b"PK\x01\x02")


async def test_nothing_is_written_before_there_is_an_output() -> None:
    """The first byte makes no ZIP: the status is still open. With an output, what is buffered is written at once."""
    run = Run({"a": [Opened("jpg", None), b"first", NEVER]})
    async with run.started():
        await run.begin()
        await turns()
        assert run.stream.bytes_out == 0
        running = asyncio.create_task(run.stream.run(run.output))
        await turns()
        header, first = run.output.pieces
        assert header.startswith(b"PK\x03\x04")
        assert first == b"first"
        assert not running.done()
        running.cancel()


async def test_output_that_has_enough_gets_nothing_more() -> None:
    """One piece is sent each time that the output has room, whatever is buffered; the archive is whole in the end."""
    output = MemoryOutput(lambda: False)
    run = Run({"a": image_of(KITCHEN), "b": image_of(HALL), "c": failing()}, output=output)
    async with run.started():
        await run.begin()
        running = asyncio.create_task(run.stream.run(output))
        await turns()
        while not running.done():
            before = len(output.pieces)
            await turns()
            assert len(output.pieces) == before
            output.resume()
            await turns()
        await running
    found = entries_of(output.data)
    assert [*found] == ["a.jpg", "b.jpg", REPORT_NAME, MANIFEST_NAME]
    assert (found["a.jpg"], found["b.jpg"]) == (KITCHEN, HALL)


async def test_output_that_fails_ends_the_archive() -> None:
    """An error of the output is raised where the archive is awaited, and nothing is written after it."""
    run = Run({"a": [Opened("jpg", None), b"first", NEVER], "b": [*image_of(HALL), NEVER]})
    async with run.started():
        await run.begin()
        running = asyncio.create_task(run.stream.run(run.output))
        await turns()
        pieces = len(run.output.pieces)
        run.output.fail(ClientStalled("the client has taken nothing for 60 s"))
        run.output.resume()
        with pytest.raises(ClientStalled):
            await running
        await turns()
        assert len(run.output.pieces) == pieces


async def test_slow_image_comes_last_under_its_own_name() -> None:
    """Entries are in the order of arrival, names are those of the order."""
    gate = asyncio.Event()
    run = Run({"a": [gate, *image_of(KITCHEN)], "b": image_of(HALL)})
    run.output.on_sent = gate.set
    entries = await run.entries()

    assert list(entries) == ["b.jpg", "a.jpg"]
    assert entries["a.jpg"] == KITCHEN
    assert [outcome.position for outcome in run.stream.outcomes] == [1, 0]


async def test_image_of_unknown_size() -> None:
    """An image without a Content-Length is as good as any."""
    assert await Run({"a": image_of(KITCHEN, has_size=False)}).entries() == {"a.jpg": KITCHEN}


async def test_log_has_the_seconds_of_each_image() -> None:
    """From its first request to its own end, not to that of the image before it; null if it was never requested."""
    gate = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, gate.set)
    slow = image_of(KITCHEN)
    run = Run(
        {"slow": [*slow[:2], gate, *slow[2:]], "behind": image_of(HALL), "broken": failing()},
        readiness={"slow": Readiness.READY, "expired": Readiness.EXPIRED},
    )
    with capture_logs() as lines:
        assert list(await run.entries())[:2] == ["slow.jpg", "behind.jpg"]

    seconds = {line["image_id"]: line["seconds"] for line in lines if line["event"].startswith("image.")}
    assert seconds.pop("expired") is None
    assert seconds["slow"] >= 0.3 > max(seconds["behind"], seconds["broken"])


async def test_time_without_anything_to_write_is_counted() -> None:
    """Only the time for which the upstream is waited for, not that for which the output is."""
    gate = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, gate.set)
    room = [False]
    run = Run({"a": [gate, *image_of(KITCHEN)]}, output=MemoryOutput(lambda: room[0]))
    async with run.started():
        await run.begin()
        running = asyncio.create_task(run.stream.run(run.output))
        await turns()
        waited_seconds = run.stream.upstream_blocked_seconds
        await turns()
        room[0] = True
        run.output.resume()
        await running
    assert run.stream.upstream_blocked_seconds == waited_seconds >= 0.05


# Images that are added later.


async def test_images_that_are_added_follow() -> None:
    """The archive stays open until nothing more is expected; what was added is counted like the rest."""
    run = Run({"a": image_of(KITCHEN)})
    run.source.scripts = {"a": image_of(KITCHEN), "b": image_of(HALL)}
    ready = PlannedImage(1, Image("b", "b.heic", Readiness.READY), "b")
    lost = PlannedImage(2, Image("c", "c.heic", Readiness.FAILED), "c")
    async with run.started():
        run.stream.keep_open()
        await run.begin()
        running = asyncio.create_task(run.stream.run(run.output))
        await turns(50)
        assert not running.done()
        run.stream.add([ready], [(lost, Failure(Reason.PROCESSING_FAILED, "in a test"))], appeared=2)
        run.stream.finish_adding()
        await running
    assert list(entries_of(run.output.data)) == ["a.jpg", "b.jpg", REPORT_NAME, MANIFEST_NAME]
    assert run.failures == {"c": Reason.PROCESSING_FAILED}


# Copies that fail or begin again.


async def test_head_that_begins_again_is_rolled_back() -> None:
    """The half copy is not in the directory, the new one is, under the same name, with its own size and digest."""
    script = [Opened("jpg", 999), b"half", 30, Interrupted(), *image_of(KITCHEN)]
    run = Run({"a": script, "b": image_of(HALL)}, ArchiveOptions(manifest=ManifestMode.ALWAYS), in_flight=1)
    entries = await run.entries()

    assert list(entries) == ["a.jpg", "b.jpg", REPORT_NAME, MANIFEST_NAME]
    assert (entries["a.jpg"], entries["b.jpg"]) == (KITCHEN, HALL)
    assert run.stream.rollbacks == 1
    assert run.entries_opened == [0, 0, 1]
    assert run.stream.outcomes[0].attempts == 2
    assert run.stream.outcomes[0].sha256 == hashlib.sha256(KITCHEN).hexdigest()


async def test_new_copy_may_be_of_another_type() -> None:
    """The extension follows the copy that is in the archive."""
    run = Run({"a": [Opened("jpg", None), b"half", 30, Opened("png", None), b"whole"]})
    assert await run.entries() == {"a.png": b"whole"}
    assert run.stream.rollbacks == 1


async def test_interrupted_head_continues() -> None:
    """A resumed copy is one entry without a seam."""
    run = Run({"a": [Opened("jpg", 8), b"half", 30, Interrupted(), b"half"]})
    assert await run.entries() == {"a.jpg": b"halfhalf"}


async def test_head_that_fails_is_rolled_back_and_reported() -> None:
    """What was sent of it is in no directory; report and manifest say what is missing and why."""
    broken = failing(Reason.CONNECTION_LOST, Opened("jpg", 10**6), b"half", b"half", 30, Interrupted())
    run = Run({"a": broken, "b": image_of(HALL)}, in_flight=1)
    entries = await run.entries()

    assert list(entries) == ["b.jpg", REPORT_NAME, MANIFEST_NAME]
    assert entries["b.jpg"] == HALL
    assert run.output.data.count(b"half") == 2
    assert run.failures == {"a": Reason.CONNECTION_LOST}
    assert (run.stream.downloaded, run.stream.failed) == (1, 1)
    assert "1 of 2 images are in this archive." in entries[REPORT_NAME].decode()
    manifest = json.loads(entries[MANIFEST_NAME])
    assert manifest["missing"] == ["a"]
    assert manifest["images"][0]["upstream_status"] == 599
    assert manifest["images"][0]["attempts"] == 2


async def test_image_that_exceeds_its_declared_size() -> None:
    """An entry whose bytes do not add up is rolled back like a failed one, and its download is aborted."""
    run = Run({"a": [Opened("jpg", 3), b"123", b"4", NEVER], "b": image_of(HALL)}, in_flight=1)
    entries = await run.entries()

    assert list(entries) == ["b.jpg", REPORT_NAME, MANIFEST_NAME]
    assert run.failures == {"a": Reason.TOO_LONG}
    assert run.source.opened["a"].is_over


async def test_first_image_complete_at_once() -> None:
    """An image whose last attempt brought no further byte is delivered like any other, also as the first."""
    run = Run({"a": [Opened("jpg", None), KITCHEN, Interrupted()]})
    assert await run.entries() == {"a.jpg": KITCHEN}


# Report and manifest.


@pytest.mark.parametrize(
    ("manifest", "fails", "added"),
    [
        pytest.param(ManifestMode.AUTO, False, [], id="auto_and_well"),
        pytest.param(ManifestMode.AUTO, True, [REPORT_NAME, MANIFEST_NAME], id="auto_and_failed"),
        pytest.param(ManifestMode.ALWAYS, False, [REPORT_NAME, MANIFEST_NAME], id="always_and_well"),
        pytest.param(ManifestMode.ALWAYS, True, [REPORT_NAME, MANIFEST_NAME], id="always_and_failed"),
    ],
)
async def test_when_there_is_a_report(manifest: ManifestMode, added: list[str], *, fails: bool) -> None:
    """A failure always adds it, the client may; digests are computed only if the client requested a manifest."""
    scripts = {"a": image_of(KITCHEN), "b": failing() if fails else image_of(HALL)}
    run = Run(scripts, ArchiveOptions(manifest=manifest))
    entries = await run.entries()

    assert [name for name in entries if name.startswith("_")] == added
    digests = {outcome.image.image_id: outcome.sha256 for outcome in run.stream.outcomes}
    digest = hashlib.sha256(KITCHEN).hexdigest() if manifest is ManifestMode.ALWAYS else None
    assert digests["a"] == digest
    if added:
        listed = json.loads(entries[MANIFEST_NAME])
        assert listed["images"][0]["sha256"] == digest
        assert listed["counts"]["total"] == 2
        assert listed["counts"]["failed"] == fails


async def test_images_known_to_be_missing_are_reported() -> None:
    """What was not ready when the order was read is counted and listed, and never requested."""
    run = Run({"b": image_of(HALL)}, readiness={"a": Readiness.NOT_READY, "b": Readiness.READY, "c": Readiness.EXPIRED})
    entries = await run.entries()

    assert list(run.source.opened) == ["b"]
    assert run.failures == {"a": Reason.NOT_READY, "c": Reason.EXPIRED}
    assert len(run.counted) == run.plan.total == 3
    assert json.loads(entries[MANIFEST_NAME])["missing"] == ["a", "c"]


# Before the first byte.


async def test_nothing_to_deliver() -> None:
    """If every image fails before its first byte, each is listed with its reason, and no byte was made."""
    run = Run({"a": failing(Reason.NOT_FOUND), "b": failing(Reason.TIMEOUT, Opened("jpg", 5))})
    async with run.started():
        with pytest.raises(NoImagesAvailable) as caught:
            await run.begin()

    assert {f["image_id"]: f["reason"] for f in caught.value.extensions["failures"]} == {
        "a": "not_found",
        "b": "timeout",
    }
    assert run.stream.bytes_out == 0
    assert len(run.counted) == 2


async def test_first_byte_timeout() -> None:
    """When time is up, what had failed until then is listed, and the downloads are ended."""
    run = Run({"a": failing(Reason.NOT_FOUND), "b": [Opened("jpg", None), NEVER]})
    async with run.started():
        with pytest.raises(FirstByteTimeout) as caught:
            await run.stream.wait_first_byte(asyncio.get_running_loop().time() + 0.01)

    assert [failure["image_id"] for failure in caught.value.extensions["failures"]] == ["a"]


async def test_passed_deadline_does_not_matter_once_bytes_are_buffered() -> None:
    """A deadline that has passed is noticed only where there is something to wait for."""
    run = Run({"a": image_of(KITCHEN)})
    async with run.started():
        await turns()
        await run.stream.wait_first_byte(asyncio.get_running_loop().time() - 1)
        await run.stream.run(run.output)
    assert entries_of(run.output.data) == {"a.jpg": KITCHEN}


# All or nothing.


ABORT = ArchiveOptions(on_error=OnError.ABORT)


async def test_abort_before_the_first_byte_is_a_status() -> None:
    """With ``on_error=abort`` a failure before the first byte rejects the archive although others are available."""
    run = Run({"a": failing(Reason.NOT_FOUND), "b": [NEVER]}, ABORT)
    async with run.started():
        with pytest.raises(NoImagesAvailable) as caught:
            await run.begin()

    assert [failure["image_id"] for failure in caught.value.extensions["failures"]] == ["a"]
    assert run.stream.bytes_out == 0


async def test_abort_after_the_first_byte_breaks_the_archive() -> None:
    """Later a failure breaks the stream at once: no directory follows, and nothing can look complete."""
    run = Run({"a": image_of(KITCHEN), "b": failing(), "c": image_of(HALL)}, ABORT)
    with pytest.raises(ArchiveAborted, match="image b failed"):
        await run.pieces()

    assert run.output.data.count(b"PK\x03\x04") == 1
    assert b"PK\x01\x02" not in run.output.data
    assert run.counted == run.stream.outcomes
    assert run.failures == {"b": Reason.TIMEOUT}


async def test_abort_between_the_first_byte_and_the_output_breaks_the_archive() -> None:
    """A failure while the headers are being sent is neither lost nor a status any more."""
    run = Run({"a": failing(Reason.TRUNCATED, Opened("jpg", 99), b"half", 10), "b": [NEVER]}, ABORT)
    async with run.started():
        await run.begin()
        await turns(50)
        with pytest.raises(ArchiveAborted, match="image a failed"):
            await run.stream.run(run.output)
    assert run.output.pieces == []
    assert run.failures == {"a": Reason.TRUNCATED}


async def test_failure_between_the_first_byte_and_the_output_is_reported() -> None:
    """The status is 200 by then: an archive without an image has its report."""
    run = Run({"a": failing(Reason.TRUNCATED, Opened("jpg", 99), b"half", 10)})
    async with run.started():
        await run.begin()
        await turns(50)
        await run.stream.run(run.output)
    assert list(entries_of(run.output.data)) == [REPORT_NAME, MANIFEST_NAME]


async def test_abort_while_an_entry_is_open() -> None:
    """A head that fails in the middle breaks the stream there."""
    run = Run({"a": failing(Reason.TRUNCATED, Opened("jpg", 99), b"half", 30)}, ABORT)
    with pytest.raises(ArchiveAborted):
        await run.pieces()
    assert run.output.pieces[1:] == [b"half"]


async def test_abort_lets_a_whole_archive_pass() -> None:
    """Without a failure it makes no difference."""
    run = Run({"a": image_of(KITCHEN), "b": image_of(HALL)}, ABORT)
    assert await run.entries() == {"a.jpg": KITCHEN, "b.jpg": HALL}


@pytest.mark.parametrize("began", [False, True])
async def test_fault_is_no_failed_image(*, began: bool) -> None:
    """A fault of our own is never reported away as an image's failure: it is raised, and the downloads end."""
    first = [Opened("jpg", None), b"half"] if began else []
    run = Run({"a": [*first, RuntimeError("a fault")], "b": [NEVER]})
    with pytest.raises(RuntimeError, match="a fault"):
        await run.pieces()

    assert run.counted == []


@pytest.mark.parametrize("method", ["entry_opened", "image_finished"])
async def test_observer_that_raises_breaks_the_archive(method: str) -> None:
    """A fault in a callback is raised where the archive is awaited, and its directory is not written."""
    run = Run({"a": image_of(KITCHEN), "b": [NEVER]}, fault_in=method)
    with pytest.raises(RuntimeError, match="a fault"):
        await run.pieces()

    assert b"PK\x01\x02" not in run.output.data


async def test_source_that_raises_breaks_the_archive() -> None:
    """A download that cannot be started, after others have ended, is not forgotten."""
    run = Run({"a": image_of(KITCHEN), "b": [NEVER]}, in_flight=1)
    run.source.scripts = {"a": image_of(KITCHEN)}
    with pytest.raises(KeyError):
        await run.pieces()

    assert b"PK\x01\x02" not in run.output.data


# Giving up.


def _many(fate: str) -> dict[str, Sequence[object]]:
    """Script one image per letter: good, upstream's fault, own fault."""
    kinds = {"g": image_of(KITCHEN), "u": failing(Reason.UPSTREAM_ERROR), "o": failing(Reason.NOT_FOUND)}
    # As with a real upstream, an image takes longer than it takes to notice the end of the one before.
    return {f"{index}{kind}": [3, *kinds[kind]] for index, kind in enumerate(fate)}


@pytest.mark.parametrize(
    ("fate", "requested"),
    [
        pytest.param("guuugg", 5, id="a_row_gives_up"),
        pytest.param("guuguug", 7, id="success_restarts_the_count"),
        pytest.param("guuouug", 7, id="images_own_failure_restarts_the_count"),
        pytest.param("gooooog", 7, id="images_own_failures_never"),
        pytest.param("guuuuuu", 5, id="the_rest_would_fail_too"),
        pytest.param("guuu", 4, id="row_at_the_end"),
    ],
)
async def test_giving_up(fate: str, requested: int) -> None:
    """After three failures of the upstream in a row nothing more is started, and the rest is reported as such."""
    run = Run(_many(fate), in_flight=1, give_up_after=3)
    with capture_logs() as lines:
        entries = await run.entries()

    assert len(run.source.opened) == requested
    not_tried = [key for key, reason in run.failures.items() if reason is Reason.UPSTREAM_UNAVAILABLE]
    assert not_tried == [key for key in run.source.scripts if key not in run.source.opened]
    assert len(run.stream.outcomes) == len(run.counted) == len(fate)
    assert all(outcome.attempts == 0 for outcome in run.stream.outcomes if outcome.image.image_id in not_tried)
    failed = [line for line in lines if line["event"] == "image.failed"]
    assert [line["image_id"] for line in failed if line["seconds"] is None] == not_tried
    assert len(json.loads(entries[MANIFEST_NAME])["images"]) == len(fate)


async def test_giving_up_before_the_first_byte() -> None:
    """A dead upstream does not get a request for every image of a large order before the client gets its status."""
    run = Run(_many("u" * 50), in_flight=2, give_up_after=3)
    async with run.started():
        with pytest.raises(NoImagesAvailable) as caught:
            await run.begin()

    assert len(run.source.opened) < 10
    assert len(caught.value.extensions["failures"]) == 50


async def test_closed_in_the_middle_everything_ends() -> None:
    """A client that leaves in the middle of an entry leaves no download and no bytes behind, and starts none."""
    run = Run(
        {
            "a": [*image_of(KITCHEN, has_size=False), NEVER],
            "b": [*image_of(HALL), NEVER],
            "c": [NEVER],
            "d": image_of(HALL),
        },
        in_flight=3,
    )
    async with run.started():
        await run.begin()
        running = asyncio.create_task(run.stream.run(run.output))
        await turns()
        assert run.output.pieces
        assert run.total.held_bytes > 0
        running.cancel()
    await turns()
    assert list(run.source.opened) == ["a", "b", "c"]
    assert run.counted == []
