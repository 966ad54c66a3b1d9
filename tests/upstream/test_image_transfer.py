"""What each response is to one image, as tables: no connection, no clock."""

import itertools
import zlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ImageFailed
from service.model import Failure, Opened, Reason, ResumeMethod
from service.upstream.image_transfer import DownloadPolicy, ImageTransfer
from service.upstream.retry import AttemptFailed
from tests.archives import jpeg

IMAGE = jpeg(1000)
WHOLE = {"content-type": "image/jpeg", "content-length": "1000", "etag": '"v1"'}
REST = {"content-range": "bytes 400-999/1000", "etag": '"v1"'}


def begin(transfer: ImageTransfer, headers: Mapping[str, str] = WHOLE, body: bytes = IMAGE[:400]) -> list[object]:
    """Receive the start of a copy; return what is handed on."""
    assert transfer.start_attempt() == {}
    assert transfer.receive_headers(200, headers, from_api=False, has_framing=True) is None
    return list(transfer.receive_body(body))


def broken(headers: Mapping[str, str] = WHOLE) -> ImageTransfer:
    """Return a transfer that broke after 400 bytes, and began its next attempt."""
    transfer = ImageTransfer(DownloadPolicy(attempts=9))
    begin(transfer, headers)
    transfer.start_attempt()
    return transfer


@given(st.lists(st.integers(1, 999), max_size=6, unique=True))
def test_image_is_handed_on_in_any_chunks(cuts: list[int]) -> None:
    """A copy begins once, with its format; all of its bytes follow, and their CRC-32 is known."""
    transfer = ImageTransfer(DownloadPolicy(attempts=1))
    transfer.start_attempt()
    transfer.receive_headers(200, WHOLE, from_api=True, has_framing=True)
    bounds = [0, *sorted(cuts), 1000]
    events: list[object] = []
    for start, end in itertools.pairwise(bounds):
        events += transfer.receive_body(IMAGE[start:end])
    events += transfer.receive_end()
    assert events[0] == Opened("jpg", 1000)
    assert b"".join(event for event in events if isinstance(event, bytes)) == IMAGE
    assert (transfer.partial.count, transfer.partial.crc32) == (1000, zlib.crc32(IMAGE))


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({**REST, "content-type": "image/jpeg"}, id="image"),
        pytest.param(REST, id="no_type"),
        pytest.param({**REST, "content-type": " "}, id="empty_type"),
    ],
)
def test_rest_needs_no_content_type(headers: dict[str, str]) -> None:
    """A 206 to If-Range may omit it (RFC 9110 section 15.3.7): its range and validator prove that it is the rest."""
    transfer = broken()
    assert transfer.receive_headers(206, headers, from_api=False, has_framing=True) is ResumeMethod.RANGE
    assert list(transfer.receive_body(IMAGE[400:])) == [IMAGE[400:]]
    assert list(transfer.receive_end()) == []
    assert (transfer.partial.count, transfer.partial.crc32) == (1000, zlib.crc32(IMAGE))


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        pytest.param(206, {**REST, "content-type": "text/html"}, id="rest_of_another_type"),
        pytest.param(200, {"content-length": "1000"}, id="whole_without_a_type"),
        pytest.param(200, {"content-type": "text/html"}, id="whole_of_another_type"),
    ],
)
def test_other_response_needs_the_type_of_an_image(status: int, headers: dict[str, str]) -> None:
    """Anything but the rest of this copy is an image only if it says so; what was received is kept."""
    transfer = broken()
    with pytest.raises(AttemptFailed) as caught:
        transfer.receive_headers(status, headers, from_api=False, has_framing=True)
    assert (caught.value.failure.reason, caught.value.retryable) == (Reason.NOT_AN_IMAGE, True)
    transfer.fail_attempt(caught.value, paused_seconds=0, chance=0)
    assert transfer.start_attempt() == {"Range": "bytes=400-", "If-Range": '"v1"'}


@pytest.mark.parametrize("status", [400, 401, 402, 403, 409, 412])
def test_status_of_the_storage_is_retried(status: int) -> None:
    """The storage's own statuses never speak of our key: the next attempt gets a fresh target."""
    transfer = ImageTransfer(DownloadPolicy(attempts=2))
    transfer.start_attempt()
    with pytest.raises(AttemptFailed) as caught:
        transfer.receive_headers(status, {}, from_api=False, has_framing=True)
    assert (caught.value.failure.reason, caught.value.retryable) == (Reason.UPSTREAM_ERROR, True)
    assert transfer.fail_attempt(caught.value, paused_seconds=0, chance=0) == 0


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, Reason.REJECTED), (401, Reason.UNAUTHORIZED), (402, Reason.NO_CREDITS), (403, Reason.UNAUTHORIZED)],
)
def test_status_of_the_api_is_final(status: int, reason: Reason) -> None:
    """The same statuses of the API are about us, and another attempt cannot change them."""
    transfer = ImageTransfer(DownloadPolicy(attempts=9))
    transfer.start_attempt()
    with pytest.raises(AttemptFailed) as caught:
        transfer.receive_headers(status, {}, from_api=True, has_framing=True)
    assert (caught.value.failure.reason, caught.value.retryable) == (reason, False)
    with pytest.raises(ImageFailed):
        transfer.fail_attempt(caught.value, paused_seconds=0, chance=0)


@pytest.mark.parametrize("status", [400, 405, 501])
def test_rejected_range_is_tried_without(status: int) -> None:
    """A Range that the storage rejects is requested once more without it; a 400 without a Range is the storage's."""
    transfer = broken()
    with pytest.raises(AttemptFailed) as caught:
        transfer.receive_headers(status, {}, from_api=False, has_framing=True)
    transfer.fail_attempt(caught.value, paused_seconds=0, chance=0)
    assert transfer.start_attempt() == {}
    assert transfer.receive_headers(200, WHOLE, from_api=False, has_framing=True) is ResumeMethod.REPLAY
    assert list(transfer.receive_body(IMAGE[:300])) == []
    assert list(transfer.receive_body(IMAGE[300:])) == [IMAGE[400:]]
    transfer.receive_end()
    assert transfer.partial.crc32 == zlib.crc32(IMAGE)


def test_rejected_url_keeps_the_range() -> None:
    """A 403 to a Range is about the URL: the next attempt requests the rest again."""
    transfer = broken()
    with pytest.raises(AttemptFailed) as caught:
        transfer.receive_headers(403, {}, from_api=False, has_framing=True)
    transfer.fail_attempt(caught.value, paused_seconds=0, chance=0)
    assert transfer.start_attempt() == {"Range": "bytes=400-", "If-Range": '"v1"'}


@pytest.mark.parametrize(
    ("replay", "reason"),
    [
        pytest.param(b"x" * 1000, Reason.CONTENT_CHANGED, id="other_bytes"),
        pytest.param(IMAGE[:399], Reason.CONTENT_CHANGED, id="ends_in_what_was_received"),
        pytest.param(IMAGE[:900], Reason.TRUNCATED, id="ends_early"),
        pytest.param(IMAGE + b"x", Reason.TOO_LONG, id="longer"),
    ],
)
def test_replay_of_other_bytes_is_not_joined(replay: bytes, reason: Reason) -> None:
    """Parts of two versions are never one copy."""
    headers = {"content-type": "image/jpeg", "content-length": "1000"}
    transfer = broken(headers)
    transfer.receive_headers(200, headers, from_api=False, has_framing=True)
    handed_on: list[object] = []

    def receive() -> None:
        handed_on.extend(transfer.receive_body(replay))
        handed_on.extend(transfer.receive_end())

    with pytest.raises(AttemptFailed) as caught:
        receive()
    assert caught.value.failure.reason is reason
    assert all(isinstance(part, bytes) and part in IMAGE for part in handed_on)


@pytest.mark.parametrize(
    ("length", "has_framing", "complete"), [(1000, False, True), (998, False, False), (998, True, False)]
)
def test_file_must_show_its_end(length: int, has_framing: bool, complete: bool) -> None:  # noqa: FBT001 - a case
    """A file without its end is cut off, whatever framing says; one with its end needs no framing."""
    transfer = ImageTransfer(DownloadPolicy(attempts=1))
    transfer.start_attempt()
    transfer.receive_headers(200, {"content-type": "image/jpeg"}, from_api=False, has_framing=has_framing)
    transfer.receive_body(IMAGE[:length])
    if complete:
        transfer.receive_end()
    else:
        with pytest.raises(AttemptFailed) as caught:
            transfer.receive_end()
        assert caught.value.failure.reason is Reason.TRUNCATED


def test_attempts_are_bounded() -> None:
    """Without progress every attempt counts; a break after backpressure that made progress does not."""
    transfer = ImageTransfer(DownloadPolicy(attempts=2, backpressure_seconds=5))
    begin(transfer)
    lost = AttemptFailed(Failure(Reason.CONNECTION_LOST, "the connection broke"))
    transfer.fail_attempt(lost, paused_seconds=5, chance=0)
    transfer.fail_attempt(lost, paused_seconds=5, chance=0)  # no progress since
    with pytest.raises(ImageFailed):
        transfer.fail_attempt(lost, paused_seconds=0, chance=0)
