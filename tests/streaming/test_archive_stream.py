"""One archive from plan to last byte, with downloads that the test scripts: no network, no clock but one deadline."""

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import pytest
from structlog.testing import capture_logs

from service.archive.parameters import ArchiveOptions, ManifestMode, OnError
from service.archive.plan import ArchivePlan, plan_archive
from service.archive.report import MANIFEST_NAME, REPORT_NAME, ReportContext
from service.archive.writer import Layout
from service.errors import ArchiveAborted, FirstByteTimeout, ImageFailed, NoImagesAvailable
from service.model import (
    DownloadEvent,
    Failure,
    Image,
    ImageOptions,
    Interrupted,
    Opened,
    Order,
    Outcome,
    Readiness,
    Reason,
)
from service.streaming.archive_stream import ArchiveStream, StreamLimits
from service.streaming.budgets import DownloadShare, MemoryBudget

KITCHEN, HALL = b"\xff\xd8kitchen" * 50, b"\xff\xd8hall" * 70
NEVER = asyncio.sleep  # a script's step that never ends


@dataclass
class Scripted:
    """A download made of a list: events, an error to raise, a gate to wait at, or ``NEVER``."""

    script: Sequence[DownloadEvent | BaseException | object]
    closed: bool = False
    attempts: int = 0

    async def events(self) -> AsyncGenerator[DownloadEvent, None]:
        """Yield the events."""
        self.attempts += 1
        try:
            for step in self.script:
                if step is NEVER:
                    await asyncio.Event().wait()
                if isinstance(step, asyncio.Event):
                    await step.wait()
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, Opened | Interrupted | bytes):
                    self.attempts += isinstance(step, Interrupted)
                    yield step
        finally:
            self.closed = True


@dataclass
class Source:
    """Images as scripts, by id."""

    scripts: Mapping[str, Sequence[object]]
    opened: dict[str, Scripted] = field(default_factory=dict)
    options: set[ImageOptions] = field(default_factory=set)

    def open_image(self, image: Image, options: ImageOptions, granted: Callable[[], None]) -> Scripted:
        """Return the image's download, which is granted at once."""
        self.options.add(options)
        granted()
        self.opened[image.image_id] = Scripted(self.scripts[image.image_id])
        return self.opened[image.image_id]


def image_of(data: bytes, extension: str = "jpg", *, told: bool = True) -> list[object]:
    """Script an image that comes in three chunks."""
    third = len(data) // 3
    size = len(data) if told else None
    return [Opened(extension, size), data[:third], data[third : 2 * third], data[2 * third :]]


def failing(reason: Reason = Reason.TIMEOUT, *before: object) -> list[object]:
    """Script an image that fails for good."""
    return [*before, ImageFailed(Failure(reason, "in a test", 599))]


class Run:
    """An archive stream with everything it needs, and a record of what it told."""

    def __init__(
        self,
        scripts: Mapping[str, Sequence[object]],
        options: ArchiveOptions | None = None,
        *,
        readiness: dict[str, Readiness] | None = None,
        in_flight: int = 5,
        give_up_after: int = 10,
    ) -> None:
        every = dict.fromkeys([*(readiness or {}), *scripts])
        images = [Image(key, f"{key}.heic", (readiness or {}).get(key, Readiness.READY)) for key in every]
        order = Order("order-1", "Villa Rosa", busy=False, images=images)
        # Stored, so that a piece can be told by the bytes that the image consists of.
        chosen = replace(options or ArchiveOptions(), layout=Layout.STORED)
        self.plan: ArchivePlan = plan_archive(order, chosen, max_images=1000)
        self.source = Source(scripts)
        self.counted: list[Outcome] = []
        self.granted: list[str] = []
        self.entries_opened: list[int] = []
        self.total = MemoryBudget(10**6)
        self.stream = ArchiveStream(
            self.plan,
            self.source,
            limits=StreamLimits(images_in_flight=in_flight, read_ahead_bytes=10**6, give_up_after=give_up_after),
            download_share=DownloadShare(64),
            total_budget=self.total,
            observer=self,
            report_context=self._report_context,
        )

    def image_granted(self, image: Image) -> None:
        """Record it."""
        self.granted.append(image.image_id)

    def entry_opened(self, position: int) -> None:
        """Record it."""
        self.entries_opened.append(position)

    def image_finished(self, outcome: Outcome) -> None:
        """Record it."""
        self.counted.append(outcome)

    def _report_context(self, outcomes: Sequence[Outcome]) -> ReportContext:
        missing = [outcome.image.image_id for outcome in outcomes if outcome.failure]
        return ReportContext("order-1", "Villa Rosa", "archive-1", {}, "2026-01-02T03:04:05Z", missing)

    async def pieces(self) -> list[bytes]:
        """Make the whole archive."""
        async with self.stream:
            await self.begin()
            return [part async for part in self.parts()]

    async def collect(self, pieces: list[bytes]) -> None:
        """Add the parts of the archive's pieces to the list as they come."""
        async for part in self.parts():
            pieces.append(part)  # noqa: PERF401 - what came before an error counts

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """Yield the parts of the archive's pieces."""
        async with aclosing(self.stream.chunks()) as pieces:
            async for parts in pieces:
                for part in parts:
                    yield bytes(part)

    async def begin(self) -> None:
        """Wait for the first byte; time is no matter."""
        await self.stream.wait_first_byte(asyncio.get_running_loop().time() + 60)

    async def entries(self) -> dict[str, bytes]:
        """Make the whole archive and let Python's zipfile read it."""
        pieces = await self.pieces()
        assert sum(map(len, pieces)) == self.stream.bytes_out
        with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as opened:
            assert opened.testzip() is None
            return {name: opened.read(name) for name in opened.namelist()}

    @property
    def failures(self) -> dict[str, Reason]:
        """The reasons of what failed, by image id, in the order in which they became certain."""
        outcomes = self.stream.outcomes
        return {outcome.image.image_id: outcome.failure.reason for outcome in outcomes if outcome.failure}


async def test_whole_archive() -> None:
    """All images stand in it bit for bit under their types' extensions, and nothing else does."""
    run = Run({"kitchen": image_of(KITCHEN), "hall": image_of(HALL, "png")})

    assert await run.entries() == {"kitchen.jpg": KITCHEN, "hall.png": HALL}
    assert (run.stream.downloaded, run.stream.failed) == (2, 0)
    assert run.counted == run.stream.outcomes
    assert [(o.position, o.attempts, o.sha256, o.failure) for o in run.counted] == [
        (0, 1, None, None),
        (1, 1, None, None),
    ]
    assert [o.entry.size for o in run.counted if o.entry] == [len(KITCHEN), len(HALL)]
    assert all(download.closed for download in run.source.opened.values())
    assert run.total.held_bytes == 0


async def test_options_reach_the_source() -> None:
    """Every image is asked for as the caller chose."""
    chosen = ImageOptions(format="webp", quality=7, preview=False)
    run = Run({"a": image_of(KITCHEN), "b": image_of(HALL)}, ArchiveOptions(image=chosen))
    await run.pieces()

    assert run.source.options == {chosen}


async def test_first_image_bytes_come_as_they_are() -> None:
    """The local header is the first piece, then the image's own chunks follow one by one, then its descriptor."""
    script = image_of(KITCHEN)
    pieces = await Run({"a": script}).pieces()

    assert pieces[0].startswith(b"PK\x03\x04")
    assert pieces[1:4] == script[1:]
    assert pieces[4].startswith(b"PK\x07\x08")
    assert pieces[5].startswith(b"PK\x01\x02")


async def test_begin_hands_out_nothing() -> None:
    """When ``begin`` returns, bytes are in hand but none was made into ZIP: the status is still open."""
    run = Run({"a": [Opened("jpg", None), b"first", NEVER]})
    async with run.stream:
        await run.begin()
        assert run.stream.bytes_out == 0
        async with aclosing(run.stream.chunks()) as chunks:
            (header,) = await anext(chunks)
            assert bytes(header).startswith(b"PK\x03\x04")
            assert await anext(chunks) == (b"first",)
    assert run.source.opened["a"].closed


async def test_slow_image_comes_last_under_its_own_name() -> None:
    """Entries stand in the order of arrival, names are those of the order."""
    gate = asyncio.Event()
    run = Run({"a": [gate, *image_of(KITCHEN)], "b": image_of(HALL)})
    pieces: list[bytes] = []
    async with run.stream:
        await run.begin()
        async for part in run.parts():
            pieces.append(part)
            gate.set()

    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as opened:
        assert opened.namelist() == ["b.jpg", "a.jpg"]
        assert opened.read("a.jpg") == KITCHEN
    assert [outcome.position for outcome in run.stream.outcomes] == [1, 0]


async def test_image_of_untold_size() -> None:
    """An image whose length was not announced is as good as any."""
    assert await Run({"a": image_of(KITCHEN, told=False)}).entries() == {"a.jpg": KITCHEN}


async def test_the_log_says_how_long_each_image_took() -> None:
    """From its first request to its own end, not to that of the image before it; null if it was never asked for."""
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


# Copies that fail or begin again.


async def test_head_that_begins_again_is_rolled_back() -> None:
    """The half copy is not in the directory, the new one is, under the same name, with its own size and digest."""
    script = [Opened("jpg", 999), b"half", Interrupted(), *image_of(KITCHEN)]
    run = Run({"a": script, "b": image_of(HALL)}, ArchiveOptions(manifest=ManifestMode.ALWAYS), in_flight=1)
    entries = await run.entries()

    assert list(entries) == ["a.jpg", "b.jpg", REPORT_NAME, MANIFEST_NAME]
    assert (entries["a.jpg"], entries["b.jpg"]) == (KITCHEN, HALL)
    assert run.stream.outcomes[0].attempts == 2
    assert run.stream.outcomes[0].sha256 == hashlib.sha256(KITCHEN).hexdigest()


async def test_new_copy_may_be_of_another_type() -> None:
    """The extension follows the copy that is in the archive."""
    run = Run({"a": [Opened("jpg", None), b"half", Opened("png", None), b"whole"]})
    pieces: list[bytes] = []
    async with run.stream:
        await run.begin()
        pieces.extend([part async for part in run.parts()])
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as opened:
        assert opened.namelist() == ["a.png"]


async def test_interrupted_head_continues() -> None:
    """A resumed copy is one entry without a seam."""
    assert await Run({"a": [Opened("jpg", 8), b"half", Interrupted(), b"half"]}).entries() == {"a.jpg": b"halfhalf"}


async def test_head_that_fails_is_rolled_back_and_reported() -> None:
    """What was sent of it is in no directory; report and manifest say what is missing and why."""
    broken = failing(Reason.CONNECTION_LOST, Opened("jpg", 10**6), b"half", b"half", Interrupted())
    run = Run({"a": broken, "b": image_of(HALL)}, in_flight=1)
    entries = await run.entries()

    assert list(entries) == ["b.jpg", REPORT_NAME, MANIFEST_NAME]
    assert entries["b.jpg"] == HALL
    assert run.failures == {"a": Reason.CONNECTION_LOST}
    assert (run.stream.downloaded, run.stream.failed) == (1, 1)
    assert "1 of 2 images are in this archive." in entries[REPORT_NAME].decode()
    manifest = json.loads(entries[MANIFEST_NAME])
    assert manifest["missing"] == ["a"]
    assert manifest["images"][0]["upstream_status"] == 599
    assert manifest["images"][0]["attempts"] == 2


async def test_image_that_outgrows_its_promise() -> None:
    """An entry whose bytes do not add up is rolled back like a failed one, and its download is stopped."""
    run = Run({"a": [Opened("jpg", 3), b"123", b"4", NEVER], "b": image_of(HALL)}, in_flight=1)
    entries = await run.entries()

    assert list(entries) == ["b.jpg", REPORT_NAME, MANIFEST_NAME]
    assert run.failures == {"a": Reason.TOO_LONG}
    assert run.source.opened["a"].closed


async def test_first_image_complete_at_once() -> None:
    """An image whose last try brought no further byte is delivered like any other, also as the first."""
    run = Run({"a": [Opened("jpg", None), KITCHEN, Interrupted()]})
    async with run.stream:
        for _ in range(10):
            await asyncio.sleep(0)
        await run.begin()
        archive = b"".join([part async for part in run.parts()])
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.read("a.jpg") == KITCHEN


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
    """A failure always adds it, the caller may; digests are computed only where the caller asked."""
    scripts = {"a": image_of(KITCHEN), "b": failing() if fails else image_of(HALL)}
    run = Run(scripts, ArchiveOptions(manifest=manifest))
    entries = await run.entries()

    assert [name for name in entries if name.startswith("_")] == added
    digest = hashlib.sha256(KITCHEN).hexdigest() if manifest is ManifestMode.ALWAYS else None
    assert run.stream.outcomes[0].sha256 == digest or run.stream.outcomes[1].sha256 == digest
    if added:
        listed = json.loads(entries[MANIFEST_NAME])
        assert listed["images"][0]["sha256"] == digest
        assert listed["counts"]["total"] == 2
        assert listed["counts"]["failed"] == fails


async def test_images_known_to_be_missing_are_reported() -> None:
    """What was not ready when the order was read is counted and listed, and never asked for."""
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
    async with run.stream:
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
    async with run.stream:
        with pytest.raises(FirstByteTimeout) as caught:
            await run.stream.wait_first_byte(asyncio.get_running_loop().time() + 0.01)

    assert [failure["image_id"] for failure in caught.value.extensions["failures"]] == ["a"]
    assert run.source.opened["b"].closed


async def test_passed_deadline_does_not_harm_bytes_in_hand() -> None:
    """A deadline that has passed is noticed only where there is something to wait for."""
    run = Run({"a": image_of(KITCHEN)})
    async with run.stream:
        for _ in range(10):
            await asyncio.sleep(0)
        await run.stream.wait_first_byte(asyncio.get_running_loop().time() - 1)
        assert len([part async for part in run.parts()]) > 3


# All or nothing.


ABORT = ArchiveOptions(on_error=OnError.ABORT)


async def test_abort_before_the_first_byte_is_a_status() -> None:
    """With ``on_error=abort`` a failure before the first byte refuses the archive although others could be had."""
    run = Run({"a": failing(Reason.NOT_FOUND), "b": [NEVER]}, ABORT)
    async with run.stream:
        with pytest.raises(NoImagesAvailable) as caught:
            await run.begin()

    assert [failure["image_id"] for failure in caught.value.extensions["failures"]] == ["a"]
    assert run.stream.bytes_out == 0


async def test_abort_after_the_first_byte_breaks_the_archive() -> None:
    """Later a failure breaks the stream at once: no directory follows, and nothing can look complete."""
    run = Run({"a": image_of(KITCHEN), "b": failing(), "c": image_of(HALL)}, ABORT)
    pieces: list[bytes] = []
    async with run.stream:
        await run.begin()
        with pytest.raises(ArchiveAborted, match="image b failed"):
            await run.collect(pieces)

    assert b"".join(pieces).count(b"PK\x03\x04") == 1
    assert b"PK\x01\x02" not in b"".join(pieces)
    assert run.counted == run.stream.outcomes
    assert run.failures == {"b": Reason.TIMEOUT}
    assert run.total.held_bytes == 0


async def test_abort_while_an_entry_is_open() -> None:
    """A head that fails in the middle breaks the stream there."""
    run = Run({"a": failing(Reason.TRUNCATED, Opened("jpg", 99), b"half")}, ABORT)
    pieces: list[bytes] = []
    async with run.stream:
        await run.begin()
        with pytest.raises(ArchiveAborted):
            await run.collect(pieces)
    assert pieces[1:] == [b"half"]


async def test_abort_lets_a_whole_archive_pass() -> None:
    """Without a failure it makes no difference."""
    run = Run({"a": image_of(KITCHEN), "b": image_of(HALL)}, ABORT)
    assert await run.entries() == {"a.jpg": KITCHEN, "b.jpg": HALL}


@pytest.mark.parametrize("began", [False, True])
async def test_fault_is_no_failed_image(*, began: bool) -> None:
    """A fault of our own is never reported away as an image's failure: it comes out, and the downloads end."""
    first = [Opened("jpg", None), b"half"] if began else []
    run = Run({"a": [*first, RuntimeError("a fault")], "b": [NEVER]})
    with pytest.raises(RuntimeError, match="a fault"):
        await run.pieces()

    assert run.counted == []
    assert all(download.closed for download in run.source.opened.values())


# Giving up.


def _many(fate: str) -> dict[str, Sequence[object]]:
    """Script one image per letter: good, upstream's fault, own fault."""
    kinds = {"g": image_of(KITCHEN), "u": failing(Reason.UPSTREAM_ERROR), "o": failing(Reason.NOT_FOUND)}
    return {f"{index}{kind}": kinds[kind] for index, kind in enumerate(fate)}


@pytest.mark.parametrize(
    ("fate", "asked"),
    [
        pytest.param("guuugg", 5, id="a_row_gives_up"),
        pytest.param("guuguug", 7, id="success_begins_anew"),
        pytest.param("guuouug", 7, id="images_own_failure_begins_anew"),
        pytest.param("gooooog", 7, id="images_own_failures_never"),
        pytest.param("guuuuuu", 5, id="the_rest_would_fail_too"),
        pytest.param("guuu", 4, id="row_at_the_end"),
    ],
)
async def test_giving_up(fate: str, asked: int) -> None:
    """After three failures of the upstream in a row nothing more is started, and the rest reported as such."""
    run = Run(_many(fate), in_flight=1, give_up_after=3)
    with capture_logs() as lines:
        entries = await run.entries()

    assert len(run.source.opened) == asked
    not_tried = [key for key, reason in run.failures.items() if reason is Reason.UPSTREAM_UNAVAILABLE]
    assert not_tried == [key for key in run.source.scripts if key not in run.source.opened]
    assert len(run.stream.outcomes) == len(run.counted) == len(fate)
    assert all(outcome.attempts == 0 for outcome in run.stream.outcomes if outcome.image.image_id in not_tried)
    failed = [line for line in lines if line["event"] == "image.failed"]
    assert [line["image_id"] for line in failed if line["seconds"] is None] == not_tried
    assert len(json.loads(entries[MANIFEST_NAME])["images"]) == len(fate)


async def test_giving_up_before_the_first_byte() -> None:
    """A dead upstream is not asked for every image of a large order before the caller hears of it."""
    run = Run(_many("u" * 50), in_flight=2, give_up_after=3)
    async with run.stream:
        with pytest.raises(NoImagesAvailable) as caught:
            await run.begin()

    assert len(run.source.opened) < 10
    assert len(caught.value.extensions["failures"]) == 50


async def test_stopped_in_the_middle_everything_ends() -> None:
    """A caller that goes away in the middle of an entry leaves no download and no bytes behind."""
    run = Run({"a": [*image_of(KITCHEN, told=False), NEVER], "b": [*image_of(HALL), NEVER], "c": [NEVER]})
    async with run.stream:
        await run.begin()
        async with aclosing(run.stream.chunks()) as pieces:
            await anext(pieces)
            assert run.total.held_bytes > 0
    assert all(download.closed for download in run.source.opened.values())
    assert run.total.held_bytes == 0
    assert run.counted == []
