"""Range requests: decides between 200, 206 and 416 for a GET. No I/O (RFC 9110, sections 13 and 14)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

LAST_MODIFIED = "Mon, 01 Sep 2025 09:30:00 GMT"
_SINGLE_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Representation:
    """Metadata of a body, and whether the storage supports ranges and lengths for it."""

    content_type: str
    etag: str | None
    ranges: bool = True
    content_length: bool = True
    last_modified: str | None = LAST_MODIFIED


@dataclass(frozen=True, slots=True)
class RangeResponse:
    """Status, headers and the part of the body to send, without framing (length or chunks)."""

    status: int
    start: int
    stop: int
    headers: Mapping[str, str] = field(default_factory=dict)

    def with_header(self, name: str, value: str) -> "RangeResponse":
        """Return a copy with one header set."""
        return replace(self, headers={**self.headers, name: value})


def plan_response(
    size: int, representation: Representation, request_headers: Mapping[str, str]
) -> RangeResponse | None:
    """Plan the response to a request with these headers; None for a range that cannot be satisfied."""
    headers = {"Content-Type": representation.content_type}
    if representation.last_modified is not None:
        headers["Last-Modified"] = representation.last_modified
    if representation.etag is not None:
        headers["ETag"] = representation.etag
    if not representation.ranges:
        return RangeResponse(200, 0, size, headers)
    headers["Accept-Ranges"] = "bytes"
    match = _SINGLE_RANGE.fullmatch(request_headers.get("Range", "").replace(" ", ""))
    # S3 ignores multiple and malformed ranges.
    if (
        match is None
        or match.groups() == ("", "")
        or not _if_range_matches(request_headers.get("If-Range"), representation)
    ):
        return RangeResponse(200, 0, size, headers)
    span = _span(match[1], match[2], size)
    if span is None:
        return None
    start, stop = span
    if start >= stop:
        return RangeResponse(200, 0, size, headers)
    return RangeResponse(206, start, stop, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})


def _span(first: str, last: str, size: int) -> tuple[int, int] | None:
    if not first:
        length = min(int(last), size)
        return (size - length, size) if length else None
    if int(first) >= size:
        return None
    return int(first), min(int(last) + 1, size) if last else size


def _if_range_matches(if_range: str | None, representation: Representation) -> bool:
    if if_range is None:
        return True
    if if_range.startswith("W/"):
        return False
    # Strong comparison: a weak tag of the storage never matches either.
    if if_range.startswith('"'):
        return if_range == representation.etag
    return if_range == representation.last_modified
