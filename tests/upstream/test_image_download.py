"""Every step of the retry policy over real sockets, checked by the requests to the storage and the archive."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from service.archive.writer import ArchiveWriter
from service.errors import ImageFailed
from service.model import Failure, ImageOptions, Opened, Reason
from service.sandbox import DEMO_ORDER_ID, Fault, Kind, Origin, Sandbox, SandboxImage
from service.upstream.api import UpstreamClient
from service.upstream.http.connection import ConnectionPool
from service.upstream.http.dial import Dialer
from service.upstream.http.fetcher import Fetcher
from service.upstream.http.session import open_session
from service.upstream.image_download import ImageDownload
from service.upstream.image_transfer import DownloadPolicy
from service.upstream.rate_limiter import RateLimiter
from service.upstream.retry import MAX_FREE_RETRIES
from service.upstream.url_policy import UrlPolicy
from tests.archives import add_order, download, entries, failures_in, images_in, images_url, jpeg, manifest_in
from tests.conftest import StartService
from tests.unzip_tools import CENTRAL_DIRECTORY_READERS, ZipReader

SIZE = 300_000
CUT = 120_000
RESET = Fault(Kind.RESET, after_bytes=CUT)
# A short idle timeout, so that the tests of stalls are quick.
QUICK = {"image_timeout_seconds": 0.4}


def requested_ranges(sandbox: Sandbox, image: SandboxImage) -> list[str | None]:
    """Return the Range header of each request for an image at the storage."""
    return [record.headers.get("Range") for record in sandbox.requests_for(image.image_id, "storage")]


FROM_START = [
    pytest.param(Fault(Kind.RESET), id="reset before the first byte"),
    pytest.param(Fault(Kind.STALL), id="stall before the first byte"),
    pytest.param(Fault(Kind.STATUS, status=500), id="500"),
    pytest.param(Fault(Kind.STATUS, status=502, json_body=False), id="502 not JSON"),
    pytest.param(Fault(Kind.STATUS, status=503), id="503"),
    pytest.param(Fault(Kind.STATUS, status=503, retry_after=0), id="503 with Retry-After"),
    pytest.param(Fault(Kind.STATUS, status=504, json_body=False), id="504"),
    pytest.param(Fault(Kind.STATUS, status=429), id="429"),
    pytest.param(Fault(Kind.STATUS, status=408), id="408"),
    pytest.param(Fault(Kind.EXPIRED_TARGET), id="expired redirect target"),
    *(pytest.param(Fault(Kind.STATUS, status=one), id=str(one)) for one in (400, 401, 402, 403, 409, 412)),
    pytest.param(Fault(Kind.HTML), id="HTML with 200"),
    pytest.param(Fault(Kind.JSON), id="JSON with 200"),
    pytest.param(Fault(Kind.WRONG_TYPE), id="wrong content type"),
    pytest.param(Fault(Kind.WRONG_MAGIC), id="wrong magic"),
]


@pytest.mark.parametrize("fault", FROM_START)
async def test_failure_before_the_first_byte_is_retried_at_the_api(
    fault: Fault, sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Step 1: the image is requested again at the API, never at the old redirect target."""
    service = await start_service(**QUICK)
    order = add_order(sandbox, [SIZE])
    sandbox.faults.script(order.images[0].image_id, [fault])
    found = await download(client, images_url(service, order.order_id, "?manifest=always"))
    assert found["0.jpg"] == jpeg(SIZE)
    assert manifest_in(found)["images"][0]["attempts"] == 2
    assert requested_ranges(sandbox, order.images[0]) == [None, None]
    assert len(sandbox.requests_for(order.images[0].image_id, "api")) == 2
    assert sandbox.reused_targets == 0


@pytest.mark.parametrize(
    ("fault", "origin"),
    [
        pytest.param(Fault(Kind.STATUS, status=429), "api", id="429 of the API"),
        pytest.param(Fault(Kind.STATUS, status=429, retry_after=1), "api", id="429 of the API with Retry-After"),
        pytest.param(Fault(Kind.STATUS, status=503, json_body=False), "api", id="503 of the API"),
        pytest.param(Fault(Kind.STATUS, status=500), "asset", id="500 of the asset server"),
        pytest.param(Fault(Kind.RESET), "asset", id="reset by the asset server"),
        pytest.param(Fault(Kind.HTML), "api", id="HTML of the API"),
        pytest.param(Fault(Kind.REDIRECT_LOOP), "api", id="redirect loop"),
        pytest.param(Fault(Kind.REDIRECT_MANY), "asset", id="too many redirects"),
        pytest.param(Fault(Kind.REDIRECT_TO, location="ftp://images.invalid/1"), "asset", id="redirect to ftp"),
        pytest.param(Fault(Kind.REFUSED), "asset", id="connection refused"),
    ],
)
async def test_failure_of_any_hop_is_retried(
    fault: Fault,
    origin: str,
    sandbox: Sandbox,
    start_service: StartService,
    client: aiohttp.ClientSession,
) -> None:
    """Step 1 at the hops before the storage: any of them may fail once."""
    service = await start_service(**QUICK)
    order = add_order(sandbox, [SIZE])
    sandbox.faults.script(order.images[0].image_id, [fault], origin=origin)  # type: ignore[arg-type]
    found = await download(client, images_url(service, order.order_id))
    assert found == {"0.jpg": jpeg(SIZE)}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(RESET, id="reset"),
        pytest.param(Fault(Kind.CLOSE_EARLY, after_bytes=CUT), id="clean close before the declared length"),
        pytest.param(Fault(Kind.CHUNKED_UNTERMINATED, after_bytes=CUT), id="chunks without their end"),
        pytest.param(Fault(Kind.STALL, after_bytes=CUT), id="stall"),
    ],
)
async def test_break_is_resumed_by_range(
    fault: Fault, sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Step 2: after a break only the rest is requested, on condition that the image is still the same."""
    service = await start_service(**QUICK)
    order = add_order(sandbox, [SIZE])
    sandbox.faults.script(order.images[0].image_id, [fault])
    found = await download(client, images_url(service, order.order_id))
    assert found == {"0.jpg": jpeg(SIZE)}
    first, second = sandbox.requests_for(order.images[0].image_id, "storage")
    assert "Range" not in first.headers
    assert second.headers["Range"] == f"bytes={CUT}-"
    assert second.headers["If-Range"].startswith('"')
    assert second.status == 206
    assert sandbox.reused_targets == 0


async def test_every_break_is_resumed(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Each attempt resumes where the previous one ended."""
    service = await start_service(image_attempts=5)
    order = add_order(sandbox, [SIZE])
    sandbox.faults.script(order.images[0].image_id, [Fault(Kind.RESET, after_bytes=50_000)] * 4)
    found = await download(client, images_url(service, order.order_id))
    assert found == {"0.jpg": jpeg(SIZE)}
    assert requested_ranges(sandbox, order.images[0]) == [
        None,
        *(f"bytes={n}-" for n in (50_000, 100_000, 150_000, 200_000)),
    ]


async def test_image_of_unknown_length_is_resumed(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """An image without Content-Length is resumed by its ETag."""
    order = sandbox.add_order([SandboxImage("0.jpg", body=jpeg(SIZE), content_lengths=False)])
    sandbox.faults.script(order.images[0].image_id, [Fault(Kind.CHUNKED_UNTERMINATED, after_bytes=CUT)])
    assert await download(client, images_url(service, order.order_id)) == {"0.jpg": jpeg(SIZE)}
    assert requested_ranges(sandbox, order.images[0]) == [None, f"bytes={CUT}-"]


@pytest.mark.parametrize(
    ("image", "script", "ranges"),
    [
        pytest.param({"etags": False}, [RESET], [None, None], id="no ETag"),
        pytest.param({}, [RESET, Fault(Kind.NO_RANGES)], [None, f"bytes={CUT}-"], id="ranges ignored"),
        pytest.param({"ranges": False}, [RESET], [None, f"bytes={CUT}-"], id="no ranges at all"),
        pytest.param({}, [RESET, Fault(Kind.WRONG_OFFSET)], [None, f"bytes={CUT}-", None], id="206, wrong offset"),
        pytest.param({}, [RESET, Fault(Kind.WRONG_TOTAL)], [None, f"bytes={CUT}-", None], id="206, wrong total"),
        pytest.param({}, [RESET, Fault(Kind.WRONG_ETAG)], [None, f"bytes={CUT}-", None], id="206 of another version"),
    ],
)
async def test_break_without_ranges_is_replayed(
    image: dict[str, bool],
    script: list[Fault],
    ranges: list[str | None],
    sandbox: Sandbox,
    service: str,
    client: aiohttp.ClientSession,
) -> None:
    """Step 3: without ranges the image is requested again from its start, and what was sent is skipped."""
    order = sandbox.add_order([SandboxImage("0.jpg", body=jpeg(SIZE), **image)])  # type: ignore[arg-type]
    sandbox.faults.script(order.images[0].image_id, script)
    async with client.get(images_url(service, order.order_id)) as response:
        data = await response.read()
    assert data.count(b"PK\x03\x04") == 1, "the entry was not begun a second time"
    assert images_in(await download(client, images_url(service, order.order_id))) == {"0.jpg": jpeg(SIZE)}
    assert requested_ranges(sandbox, order.images[0])[:-1] == ranges


@pytest.mark.parametrize(
    ("etags", "script"),
    [
        pytest.param(True, [RESET, Fault(Kind.CHANGED)], id="another ETag"),
        pytest.param(False, [RESET, Fault(Kind.CHANGED_SILENTLY), None], id="other bytes, without an ETag"),
    ],
)
async def test_changed_content_rolls_the_entry_back(
    etags: bool,  # noqa: FBT001
    script: list[Fault | None],
    sandbox: Sandbox,
    service: str,
    client: aiohttp.ClientSession,
) -> None:
    """Step 4: parts of two versions are never joined; a new entry begins, and only the complete one counts."""
    order = sandbox.add_order([SandboxImage("0.jpg", body=jpeg(SIZE), etags=etags), SandboxImage("1.jpg", jpeg(500))])
    sandbox.faults.script(order.images[0].image_id, script)
    gate = sandbox.faults.pause(order.images[1].image_id, origin="api")
    async with client.get(images_url(service, order.order_id)) as response:
        data = await response.content.readexactly(CUT)
        gate.release()
        data += await response.read()
    assert data.count(b"PK\x03\x04") == 3, "two entries, and one that was rolled back"
    found = entries(data)
    assert sorted(found) == ["0.jpg", "1.jpg"]
    assert found["0.jpg"][:CUT] != jpeg(SIZE)[:CUT] or found["0.jpg"] == jpeg(SIZE)
    assert found["0.jpg"].endswith(b"\xff\xd9")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(Fault(Kind.RESET), "connection_lost", id="reset"),
        pytest.param(Fault(Kind.STALL), "timeout", id="stall"),
        pytest.param(Fault(Kind.REFUSED), "connection_failed", id="refused"),
        pytest.param(Fault(Kind.STATUS, status=503), "upstream_error", id="503"),
        pytest.param(Fault(Kind.EXPIRED_TARGET), "upstream_error", id="expired target"),
        *(
            pytest.param(Fault(Kind.STATUS, status=one), "upstream_error", id=f"{one} of the storage")
            for one in (400, 401, 402, 403, 409, 412)
        ),
        pytest.param(Fault(Kind.HTML), "not_an_image", id="HTML"),
        pytest.param(Fault(Kind.WRONG_MAGIC), "not_an_image", id="wrong magic"),
        pytest.param(Fault(Kind.CHUNKED_UNTERMINATED, after_bytes=0), "truncated", id="no body"),
        pytest.param(Fault(Kind.REDIRECT_TO, location="http://user@127.0.0.1/"), "redirect_refused", id="redirect"),
    ],
)
async def test_failed_attempts_are_reported(
    fault: Fault, reason: str, sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Step 5: when every attempt has failed, the image is reported with its reason and their number."""
    service = await start_service(**QUICK)
    order = add_order(sandbox, [1000, SIZE])
    hop = "asset" if fault.kind is Kind.REDIRECT_TO else "storage"
    sandbox.faults.always(order.images[1].image_id, fault, origin=hop)  # type: ignore[arg-type]
    found = await download(client, images_url(service, order.order_id))
    assert images_in(found) == {"0.jpg": jpeg(1000)}
    assert failures_in(found) == {"1.jpg": reason}
    assert manifest_in(found)["images"][1]["attempts"] == 3


async def test_rate_limit_uses_up_no_attempt(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Several 429 responses use up no attempt; an image that gets no other is reported in the end."""
    service = await start_service(**{**QUICK, "image_attempts": 1})
    order = add_order(sandbox, [1000, SIZE])
    refused = Fault(Kind.STATUS, status=429, retry_after=0)
    sandbox.faults.script(order.images[0].image_id, [refused] * MAX_FREE_RETRIES, origin="storage")
    sandbox.faults.always(order.images[1].image_id, refused, origin="storage")
    found = await download(client, images_url(service, order.order_id))
    assert images_in(found) == {"0.jpg": jpeg(1000)}
    assert failures_in(found) == {"1.jpg": "rate_limited"}
    assert [one["attempts"] for one in manifest_in(found)["images"]] == [MAX_FREE_RETRIES + 1] * 2


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, "rejected"), (401, "unauthorized"), (402, "no_credits"), (403, "unauthorized"), (404, "not_found"),
     (410, "not_found"), (422, "rejected")],
)  # fmt: skip
async def test_final_status_is_not_retried(
    status: int, reason: str, sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """A response of the API that another attempt cannot change is final at once."""
    order = add_order(sandbox, [1000, SIZE])
    sandbox.faults.always(order.images[1].image_id, Fault(Kind.STATUS, status=status), origin="api")
    found = await download(client, images_url(service, order.order_id))
    assert failures_in(found) == {"1.jpg": reason}
    assert manifest_in(found)["images"][1]["upstream_status"] == status
    assert len(sandbox.requests_for(order.images[1].image_id, "api")) == 1


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(Kind.NO_LENGTH), id="chunked, no length"),
        pytest.param(Fault(Kind.CLOSE_DELIMITED), id="ended by the connection"),
        pytest.param(Fault(Kind.NO_ETAG), id="no ETag"),
        pytest.param(Fault(Kind.WEAK_ETAG), id="weak ETag"),
        pytest.param(Fault(Kind.DRIP, chunk_bytes=30_000, delay_seconds=0.001), id="drip"),
        pytest.param(Fault(Kind.LONGER), id="more bytes than declared"),
        pytest.param(Fault(Kind.SECOND_RESPONSE), id="a second response behind the last chunk"),
        pytest.param(Fault(Kind.PADDED_HEADERS), id="white space around header values"),
    ],
)
async def test_unusual_but_complete_response_is_accepted(
    fault: Fault, sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """An unusual but complete response arrives unchanged."""
    order = add_order(sandbox, [SIZE])
    sandbox.faults.always(order.images[0].image_id, fault)
    assert await download(client, images_url(service, order.order_id)) == {"0.jpg": jpeg(SIZE)}


@pytest.mark.parametrize("origin", ["api", "asset", "storage"])
async def test_reused_connection_that_is_closed_uses_up_no_attempt(
    origin: Origin, sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """A request on an idle connection that the server closes is repeated, and no earlier request is."""
    service = await start_service(image_attempts=1, images_in_flight=1)
    order = add_order(sandbox, [1000] * 4)
    for image in order.images:
        sandbox.faults.script(image.image_id, [Fault(Kind.CLOSE_REUSED)], origin=origin)
    found = await download(client, images_url(service, order.order_id, "?manifest=always"))
    assert images_in(found) == {image.name: sandbox.body(image.image_id) for image in order.images}
    assert [one["attempts"] for one in manifest_in(found)["images"]] == [1] * 4
    for hop in ("api", "asset", "storage"):
        closed = [one for image in order.images for one in sandbox.requests_for(image.image_id, hop) if not one.status]
        assert bool(closed) == (hop == origin)
        requests = sum(len(sandbox.requests_for(image.image_id, hop)) for image in order.images)
        assert requests == 4 + len(closed)
    assert sandbox.reused_targets == 0


async def test_trailers_without_an_end_are_a_failed_attempt(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """An image with endless trailers is tried again like any other whose response breaks."""
    order = add_order(sandbox, [SIZE, SIZE])
    sandbox.faults.script(order.images[0].image_id, [Fault(Kind.ENDLESS_TRAILERS)])
    sandbox.faults.always(order.images[1].image_id, Fault(Kind.ENDLESS_TRAILERS))
    found = await download(client, images_url(service, order.order_id))
    assert images_in(found) == {"0.jpg": jpeg(SIZE)}
    assert list(failures_in(found)) == ["1.jpg"]


async def test_close_delimited_image_needs_its_end_marker(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """A close-delimited image without its end marker is truncated."""
    order = sandbox.add_order([SandboxImage("0.jpg", jpeg(500)), SandboxImage("1.jpg", body=jpeg(SIZE)[:-2])])
    sandbox.faults.always(order.images[1].image_id, Fault(Kind.CLOSE_DELIMITED))
    found = await download(client, images_url(service, order.order_id))
    assert failures_in(found) == {"1.jpg": "truncated"}


FRAMINGS = [
    pytest.param(None, id="length"),
    pytest.param(Fault(Kind.NO_LENGTH), id="chunked"),
    pytest.param(Fault(Kind.CLOSE_DELIMITED), id="ended by the connection"),
]
FILM = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom\0\0\x07\xd0mdat" + bytes(1992)


def drawn(sandbox: Sandbox, form: str) -> bytes:
    """Return a real picture of a format."""
    if form not in sandbox.formats:
        pytest.skip(f"no {form} encoder is installed")
    return sandbox.body(sandbox.orders[DEMO_ORDER_ID].images[0].image_id, form)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "avif"])
async def test_bytes_behind_the_end_marker_are_kept(
    form: str, framing: Fault | None, sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """An image is complete once its end marker was seen; what follows is delivered too."""
    picture = drawn(sandbox, form)
    bodies = [picture, *(picture + trailing for trailing in (b"\0\0", bytes(65), bytes(1000), bytes(3_000_000), FILM))]
    order = sandbox.add_order([SandboxImage("image.jpg", body, content_type="image/jpeg") for body in bodies])
    for image in order.images:
        sandbox.faults.always(image.image_id, framing)
    found = await download(client, images_url(service, order.order_id))
    assert [found[name] for name in sorted(found)] == bodies  # in the order of the order


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "avif"])
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_image_without_its_end_marker_is_truncated(
    form: str, framing: Fault | None, sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """An image without its end marker is truncated, even if length or chunks agree with the body."""
    picture = drawn(sandbox, form)
    bodies = [jpeg(500), picture[: len(picture) * 6 // 10], picture[:-1]]
    order = sandbox.add_order([SandboxImage("image.jpg", body, content_type="image/jpeg") for body in bodies])
    for image in order.images:
        sandbox.faults.always(image.image_id, framing)
    found = await download(client, images_url(service, order.order_id))
    assert [one["reason"] for one in manifest_in(found)["images"]] == [None, "truncated", "truncated"]


async def test_end_marker_of_a_thumbnail_does_not_count(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """The end marker of a JPEG's thumbnail is not the JPEG's own."""
    thumbnail = b"Exif\0\0" + jpeg(900)
    start = b"\xff\xd8\xff\xe1" + (len(thumbnail) + 2).to_bytes(2) + thumbnail
    bodies = [start, start + jpeg(500)[2:]]
    order = sandbox.add_order([SandboxImage("image.jpg", body, content_type="image/jpeg") for body in bodies])
    found = await download(client, images_url(service, order.order_id))
    assert [one["reason"] for one in manifest_in(found)["images"]] == ["truncated", None]


async def test_break_before_and_behind_the_end_marker_is_resumed(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """The image is parsed across a break, within it as behind its end."""
    order = sandbox.add_order([SandboxImage("0.jpg", size_bytes=SIZE, padding_bytes=SIZE) for _ in range(3)])
    for image, cut in zip(order.images, (CUT, SIZE - 1, SIZE + CUT), strict=True):
        sandbox.faults.script(image.image_id, [Fault(Kind.RESET, after_bytes=cut)])
    found = await download(client, images_url(service, order.order_id))
    assert [found[name] for name in sorted(found)] == [sandbox.body(image.image_id) for image in order.images]


async def test_avif_brand_may_be_listed_late(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """An AVIF with other brands first is recognised, also if its first bytes arrive in small chunks."""
    brands = b"mif1\0\0\0\0" + b"mif1miafMA1Bmsf1" * 8 + b"avif"
    rest = drawn(sandbox, "avif")
    body = (len(brands) + 8).to_bytes(4) + b"ftyp" + brands + rest[int.from_bytes(rest[:4]) :]
    order = sandbox.add_order([SandboxImage("0.jpg", body, content_type="image/avif") for _ in range(2)])
    sandbox.faults.always(order.images[1].image_id, Fault(Kind.DRIP, chunk_bytes=100, delay_seconds=0))
    assert await download(client, images_url(service, order.order_id)) == {"0.avif": body, "0_2.avif": body}


async def test_order_look_up_is_retried(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """A look-up that fails once is repeated."""
    order = add_order(sandbox, [1000])
    sandbox.faults.order(order.order_id, [Fault(Kind.STATUS, status=503), Fault(Kind.RESET)])
    assert len(await download(client, images_url(service, order.order_id))) == 1


async def test_failing_upstream_is_abandoned(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """After too many consecutive failures of the upstream the rest is reported, not requested."""
    service = await start_service(give_up_after=3, images_in_flight=1, image_attempts=1)
    order = add_order(sandbox, [1000] * 8)
    for image in order.images[1:]:
        sandbox.faults.always(image.image_id, Fault(Kind.STATUS, status=503))
    found = await download(client, images_url(service, order.order_id))
    reasons = list(failures_in(found).values())
    assert reasons.count("upstream_error") + reasons.count("upstream_unavailable") == 7
    assert reasons[-1] == "upstream_unavailable"
    assert sandbox.requests_for(order.images[-1].image_id) == []


@pytest.mark.parametrize("judge", CENTRAL_DIRECTORY_READERS)
async def test_rolled_back_entries_are_invisible(
    judge: ZipReader, sandbox: Sandbox, service: str, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Every unzip program sees only the complete images of an archive with rolled-back entries."""
    order = add_order(sandbox, [SIZE] * 4)
    sandbox.faults.script(order.images[1].image_id, [RESET, Fault(Kind.CHANGED)])
    sandbox.faults.always(order.images[2].image_id, Fault(Kind.WRONG_TYPE))
    sandbox.faults.script(order.images[2].image_id, [RESET])
    async with client.get(images_url(service, order.order_id)) as response:
        data = await response.read()
    path = tmp_path / "images.zip"
    path.write_bytes(data)
    found = await asyncio.to_thread(judge, path)
    assert found == entries(data)
    assert failures_in(found) == {"2.jpg": "not_an_image"}
    assert {name: len(body) for name, body in images_in(found).items()} == {
        "0.jpg": SIZE,
        "1.jpg": SIZE + 7,  # the changed version, whole
        "3.jpg": SIZE,
    }


class Sink:
    """Collects the events of one image; the bytes of a copy are void when the next one opens."""

    def __init__(self, on_received: Callable[[], None] = lambda: None) -> None:
        self.events: list[object] = []
        self.content = bytearray()
        self.granted = 0
        self.interrupted, self.ended = asyncio.Event(), asyncio.Event()
        self._on_received = on_received

    def grant(self) -> None:
        """Count the grants."""
        self.granted += 1

    def image_opened(self, opened: Opened) -> None:
        """Begin a copy."""
        self.events.append(opened)
        self.content.clear()

    def image_received(self, chunk: bytes, crc32: int) -> None:
        """Collect bytes, whose CRC-32 is that of the copy so far."""
        self.content += chunk
        assert crc32 == zlib.crc32(self.content)
        self._on_received()

    def image_interrupted(self, failure: Failure) -> None:
        """Note the interruption."""
        self.events.append(failure.reason)
        self.interrupted.set()

    def image_completed(self, size: int, crc32: int) -> None:
        """Note the end, which has the size and the CRC-32 of all bytes."""
        assert (size, crc32) == (len(self.content), zlib.crc32(self.content))
        self.events.append("completed")
        self.ended.set()

    def image_failed(self, failure: Failure) -> None:
        """Note the final failure."""
        self.events.append(("failed", failure.reason))
        self.ended.set()

    def image_crashed(self, error: BaseException) -> None:
        """Note a fault of the service."""
        self.events.append(error)
        self.ended.set()


@asynccontextmanager
async def upstream_of(sandbox: Sandbox, policy: DownloadPolicy, **options: float) -> AsyncIterator[UpstreamClient]:
    """Open a client of the sandbox's API."""
    pool = ConnectionPool(Dialer(allow_private=True, connect_timeout_seconds=5))
    async with open_session(allow_private=True, connect_timeout_seconds=5) as session:
        fetcher = Fetcher(
            session,
            pool,
            UrlPolicy(URL(sandbox.api_origin), allow_private=True),
            rate_limiter=RateLimiter(100, clock=asyncio.get_running_loop().time),
            api_headers={"x-api-key": sandbox.api_key},
            idle_timeout_seconds=options.get("idle_timeout_seconds", 5),
        )
        yield UpstreamClient(fetcher, api_base=sandbox.api_base, policy=policy)
        pool.close()


def start(upstream: UpstreamClient, image: SandboxImage, sink: Sink) -> ImageDownload:
    """Start the download of an image."""
    download = upstream.images(ImageOptions()).download(image.image_id, sink, sink.grant)
    download.start()
    return download


async def test_backpressure_uses_up_no_attempt(sandbox: Sandbox) -> None:
    """Breaks after backpressure use up no attempt, as long as each attempt makes progress."""
    order = add_order(sandbox, [SIZE])
    sandbox.faults.script(order.images[0].image_id, [Fault(Kind.RESET, after_bytes=50_000)] * 5)
    async with upstream_of(sandbox, DownloadPolicy(attempts=2, backpressure_seconds=0)) as upstream:
        sink = Sink()
        image_download = start(upstream, order.images[0], sink)
        await sink.ended.wait()
    assert sink.content == jpeg(SIZE)
    assert sink.events == [Opened("jpg", SIZE), *[Reason.TRUNCATED] * 5, "completed"]
    assert (image_download.attempts, sink.granted) == (6, 1)


async def test_sink_gets_a_new_copy_when_the_content_changes(sandbox: Sandbox) -> None:
    """The start of another copy follows an interruption, and makes the bytes before it void."""
    order = add_order(sandbox, [SIZE])
    sandbox.faults.script(order.images[0].image_id, [RESET, Fault(Kind.CHANGED)])
    async with upstream_of(sandbox, DownloadPolicy(attempts=3)) as upstream:
        sink = Sink()
        start(upstream, order.images[0], sink)
        await sink.ended.wait()
    assert len(sink.content) == SIZE + 7
    assert sink.events == [Opened("jpg", SIZE), Reason.TRUNCATED, Opened("jpg", SIZE + 7), "completed"]


async def test_sink_gets_the_last_failure(sandbox: Sandbox) -> None:
    """Every failure but the last is an interruption; without a grant nothing was granted."""
    order = add_order(sandbox, [SIZE])
    sandbox.faults.always(order.images[0].image_id, Fault(Kind.STATUS, status=503), origin="api")
    async with upstream_of(sandbox, DownloadPolicy(attempts=2)) as upstream:
        sink = Sink()
        start(upstream, order.images[0], sink)
        await sink.ended.wait()
    assert sink.events == [Reason.UPSTREAM_ERROR, ("failed", Reason.UPSTREAM_ERROR)]
    assert sink.granted == 0


async def test_paused_download_is_no_idle_upstream(sandbox: Sandbox) -> None:
    """A sink that pauses the download gets nothing more, and no timeout, until it resumes it."""
    size = 8_000_000
    order = add_order(sandbox, [size])
    paused = asyncio.Event()

    def pause() -> None:
        if not paused.is_set():
            image_download.pause()
            paused.set()

    async with upstream_of(sandbox, DownloadPolicy(attempts=1), idle_timeout_seconds=0.1) as upstream:
        sink = Sink(pause)
        image_download = start(upstream, order.images[0], sink)
        await paused.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sink.ended.wait(), 0.4)  # four idle timeouts
        assert len(sink.content) < size // 2
        image_download.resume()
        await sink.ended.wait()
    assert sink.events == [Opened("jpg", size), "completed"]
    assert len(sink.content) == size


@pytest.mark.parametrize("moment", ["streaming", "backing off"])
async def test_aborted_download_is_over(moment: str, sandbox: Sandbox) -> None:
    """An aborted download sends no request and calls its sink no more, whether it was reading or waiting to retry."""
    order = add_order(sandbox, [SIZE])
    image = order.images[0]
    received = asyncio.Event()
    gate = sandbox.faults.pause(image.image_id, after_bytes=CUT) if moment == "streaming" else None
    if moment == "backing off":
        sandbox.faults.always(image.image_id, Fault(Kind.STATUS, status=503, retry_after=30))
    async with upstream_of(sandbox, DownloadPolicy(attempts=3)) as upstream:
        sink = Sink(received.set)
        image_download = start(upstream, image, sink)
        if gate is not None:
            await received.wait()
        else:
            await sink.interrupted.wait()
        events = list(sink.events)
        image_download.abort()
        if gate is not None:
            gate.release()
        other = Sink()
        sandbox.faults.always(image.image_id, None)
        start(upstream, image, other)
        await other.ended.wait()
    assert other.content == jpeg(SIZE)
    assert sink.events == events
    assert not sink.ended.is_set()


async def test_fault_of_the_sink_is_handed_on(sandbox: Sandbox) -> None:
    """An exception that a sink raises ends the download with it, and not as a failure of the upstream."""
    order = add_order(sandbox, [SIZE])
    fault = RuntimeError("an internal error")

    def fail() -> None:
        raise fault

    async with upstream_of(sandbox, DownloadPolicy(attempts=3)) as upstream:
        sink = Sink(fail)
        image_download = start(upstream, order.images[0], sink)
        await sink.ended.wait()
    assert sink.events == [Opened("jpg", SIZE), fault]
    assert image_download.attempts == 1


async def test_small_image_is_fetched_whole(sandbox: Sandbox) -> None:
    """A small image is returned with its extension, after retries as for any other; a larger one is not."""
    order = add_order(sandbox, [SIZE, SIZE])
    sandbox.faults.script(order.images[0].image_id, [RESET, Fault(Kind.CHANGED)])
    async with upstream_of(sandbox, DownloadPolicy(attempts=3)) as upstream:
        images = upstream.images(ImageOptions())
        extension, content = await images.fetch(order.images[0].image_id, max_bytes=SIZE + 7)
        assert (extension, len(content)) == ("jpg", SIZE + 7)
        with pytest.raises(ImageFailed) as caught:
            await images.fetch(order.images[1].image_id, max_bytes=SIZE - 1)
    assert caught.value.failure.reason is Reason.REJECTED


@pytest.mark.parametrize("status", [400, 405, 501])
async def test_rejected_range_is_tried_once_more_without(
    status: int, sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """A storage that rejects the Range is requested once more without it, and what was sent is skipped."""
    service = await start_service(**QUICK)
    order = add_order(sandbox, [SIZE])
    sandbox.faults.script(order.images[0].image_id, [RESET, Fault(Kind.STATUS, status=status)])
    found = await download(client, images_url(service, order.order_id))
    assert found == {"0.jpg": jpeg(SIZE)}
    assert requested_ranges(sandbox, order.images[0]) == [None, f"bytes={CUT}-", None]
    assert sandbox.reused_targets == 0


async def test_internal_error_aborts_the_connection(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the service itself fails in the middle of an archive, the response is aborted, never ended cleanly."""
    order = add_order(sandbox, [1000] * 3)

    def fail(_writer: ArchiveWriter) -> None:
        raise RuntimeError("an internal error")

    monkeypatch.setattr(ArchiveWriter, "finish", fail)
    with pytest.raises(aiohttp.ClientPayloadError):
        await download(client, images_url(service, order.order_id))


async def test_malformed_chunk_behind_delivered_data_is_retried(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """A body whose chunked framing breaks while it waits in a full buffer is retried like any other break."""
    service = await start_service(image_timeout_seconds=0.6, image_attempts=5, read_ahead_bytes=100_000)
    small = [SandboxImage(f"{n}.jpg", size_bytes=50_000, content_lengths=False) for n in range(1, 5)]
    order = sandbox.add_order([SandboxImage("0.jpg", size_bytes=6_000_000), *small])
    for image in order.images[1:]:
        sandbox.faults.script(image.image_id, [Fault(Kind.LONGER)])
    found = await download(client, images_url(service, order.order_id))
    assert {name: len(data) for name, data in found.items()} == {
        "0.jpg": 6_000_000,
        **{f"{n}.jpg": 50_000 for n in range(1, 5)},
    }
