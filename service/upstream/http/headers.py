"""Parses the header fields of upstream responses, whose names are in lower case. A malformed field counts as absent."""

import email.utils
from collections.abc import Mapping
from datetime import UTC, datetime


def strong_etag(headers: Mapping[str, str]) -> str | None:
    """Return the ETag if it is a strong one (RFC 9110 section 8.8.3)."""
    etag = headers.get("etag", "")
    return etag if len(etag) > 2 and etag.isascii() and etag.startswith('"') and etag.endswith('"') else None  # noqa: PLR2004 - quotes


def content_length(headers: Mapping[str, str]) -> int | None:
    """Return the Content-Length in bytes (RFC 9110 section 8.6), if it is well-formed."""
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None  # noqa: PLR2004 - exabytes


def retry_after_seconds(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the wait of ``Retry-After`` (RFC 9110 section 10.2.3: seconds or a date), never negative."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), 1e9)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
