"""Decides how the storage answers a GET: all of it, a part, or 416. No I/O (RFC 9110, sections 13 and 14)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

LAST_MODIFIED = "Mon, 01 Sep 2025 09:30:00 GMT"
_SINGLE_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Traits:
    """What the storage says and can do about one body."""

    content_type: str
    etag: str | None
    ranges: bool = True
    content_length: bool = True
    last_modified: str | None = LAST_MODIFIED


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers and the part of the body to send; the framing (length or chunks) is the sender's."""

    status: int
    start: int
    stop: int
    headers: Mapping[str, str] = field(default_factory=dict)

    def with_header(self, name: str, value: str) -> "Answer":
        """Return the same answer with one header set."""
        return replace(self, headers={**self.headers, name: value})


def answer(size: int, traits: Traits, asked: Mapping[str, str]) -> Answer | None:
    """Return the answer to a request with these headers; None is a range that cannot be satisfied."""
    headers = {"Content-Type": traits.content_type}
    if traits.last_modified is not None:
        headers["Last-Modified"] = traits.last_modified
    if traits.etag is not None:
        headers["ETag"] = traits.etag
    if not traits.ranges:
        return Answer(200, 0, size, headers)
    headers["Accept-Ranges"] = "bytes"
    wanted = _SINGLE_RANGE.fullmatch(asked.get("Range", "").replace(" ", ""))
    # S3 ignores several ranges at once and anything it cannot read.
    if wanted is None or wanted.groups() == ("", "") or not _still_same(asked.get("If-Range"), traits):
        return Answer(200, 0, size, headers)
    span = _span(wanted[1], wanted[2], size)
    if span is None:
        return None
    start, stop = span
    if start >= stop:
        return Answer(200, 0, size, headers)
    return Answer(206, start, stop, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})


def _span(first: str, last: str, size: int) -> tuple[int, int] | None:
    if not first:
        length = min(int(last), size)
        return (size - length, size) if length else None
    if int(first) >= size:
        return None
    return int(first), min(int(last) + 1, size) if last else size


def _still_same(if_range: str | None, traits: Traits) -> bool:
    if if_range is None:
        return True
    if if_range.startswith("W/"):
        return False
    # Strong comparison: a weak tag of our own never matches either.
    if if_range.startswith('"'):
        return if_range == traits.etag
    return if_range == traits.last_modified
