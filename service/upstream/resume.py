"""Resuming a partial image: what the next request is for, and what its response is. Pure functions.

With a strong ETag only the rest is requested, with ``Range`` and ``If-Range`` (RFC 9110 sections 14.2 and 13.1.5), and
only its exact continuation is accepted. Otherwise the whole image is requested, and what was received is skipped.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from http import HTTPStatus
from typing import Self

from service.model import Failure, Reason
from service.upstream.http.headers import content_length, strong_etag
from service.upstream.retry import AttemptFailed, status_failure

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
# Responses of servers that do not support ranges, or not this one, instead of ignoring the header as RFC 9110 allows.
_RANGE_REJECTED = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED})


@dataclass(slots=True)
class PartialImage:
    """The received part of the current copy: ``count`` bytes with this CRC-32, of ``total`` if that is known.

    ``resumable`` turns false when a response has shown that the server's ranges cannot be used.
    """

    count: int = 0
    crc32: int = 0
    total: int | None = None
    etag: str | None = None
    resumable: bool = True

    @classmethod
    def promised(cls, headers: Mapping[str, str]) -> Self:
        """Return an empty copy with the size and the validator that its response states."""
        return cls(total=content_length(headers), etag=strong_etag(headers))

    @property
    def by_range(self) -> bool:
        """Whether the next request is a range request (RFC 9110 section 14.2 with 13.1.5: strong ETag needed)."""
        return self.count > 0 and self.etag is not None and self.resumable


class PartialImageInvalid(AttemptFailed):
    """The attempt failed, and the partial image cannot be resumed as it was. The next attempt uses ``replacement``."""

    def __init__(self, failure: Failure, replacement: PartialImage) -> None:
        super().__init__(failure)
        self.replacement = replacement


class ResumeAction(Enum):
    """What to do with the body of a successful response."""

    BEGIN = auto()  # a new copy
    CONTINUE = auto()  # the rest of the partial image
    REPLAY = auto()  # the same copy from its start: skip what was received


def range_headers(partial: PartialImage) -> dict[str, str]:
    """Return the header fields that request the rest (RFC 9110 sections 13.1.5 and 14.2), or none."""
    if not partial.by_range or partial.etag is None:
        return {}
    return {"Range": f"bytes={partial.count}-", "If-Range": partial.etag}


def classify_response(partial: PartialImage, status: int, headers: Mapping[str, str]) -> ResumeAction:
    """Decide what a response is to the partial image.

    Raises:
        AttemptFailed: it cannot be used.
        PartialImageInvalid: neither can the partial image as it was.
    """
    if status == HTTPStatus.OK:
        return _classify_whole(partial, headers)
    if status == HTTPStatus.PARTIAL_CONTENT and partial.by_range:
        return _classify_part(partial, headers)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and partial.by_range:
        failure = Failure(Reason.CONTENT_CHANGED, "the image no longer has the bytes that are missing", status)
        raise PartialImageInvalid(failure, PartialImage())
    if status in _RANGE_REJECTED and partial.by_range:
        failure = Failure(Reason.REJECTED, f"the upstream rejected a range with status {status}", status)
        raise PartialImageInvalid(failure, replace(partial, resumable=False))
    raise status_failure(status, headers)


def _classify_whole(partial: PartialImage, headers: Mapping[str, str]) -> ResumeAction:
    if partial.count == 0:
        return ResumeAction.BEGIN
    etag, length = strong_etag(headers), content_length(headers)
    changed = etag is not None and partial.etag is not None and etag != partial.etag
    resized = length is not None and partial.total is not None and length != partial.total
    return ResumeAction.BEGIN if changed or resized else ResumeAction.REPLAY


def _classify_part(partial: PartialImage, headers: Mapping[str, str]) -> ResumeAction:
    """Accept only the exact continuation (RFC 9110 section 14.4); anything else disqualifies the server's ranges."""
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if match:
        first, last, total = map(int, match.groups())
        fits = first == partial.count and last == total - 1 and partial.total in {None, total}
        etag, length = strong_etag(headers), content_length(headers)
        if fits and etag in {None, partial.etag} and length in {None, total - first}:
            return ResumeAction.CONTINUE
    failure = Failure(Reason.CONTENT_CHANGED, "the upstream resumed at the wrong offset", 206)
    raise PartialImageInvalid(failure, replace(partial, resumable=False))
