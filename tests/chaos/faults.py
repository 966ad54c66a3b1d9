"""Draw the faults of one image or one order look-up. Pure: random generator in, faults out."""

import random
from collections.abc import Sequence
from typing import Any

from service.sandbox import Fault, Gate, Kind

# Requests of one image for which faults are drawn; the service makes fewer unless backpressure makes it resume.
SCRIPTED_REQUESTS = 8
# Beyond any image: the sandbox then cuts before the last byte.
BEYOND_THE_END = 10**9

_RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)
_FINAL_STATUSES = (400, 401, 402, 403, 404, 410, 418, 422)
# Most must be retryable, or hardly any image would reach its fourth attempt.
_FINAL_SHARE = 0.2
_RETRY_AFTER = (None, None, None, 0, 1, "soon", "Mon, 01 Sep 2025 09:30:00 GMT", "-1")
# No DNS, loopback only. Port 1 refuses; "/v3/orders" is JSON with the API key.
_ELSEWHERE = ("ftp://127.0.0.1/1.jpg", "http://127.0.0.1:1/1.jpg", "http://[::1", "/nowhere", "/v3/orders", "//", "#")

_AT_EVERY_HOP = (
    Kind.STATUS, Kind.STATUS, Kind.STATUS, Kind.RESET, Kind.STALL, Kind.PAUSE, Kind.SLOW_START, Kind.HTML, Kind.JSON,
    Kind.CLOSE_REUSED,
)  # fmt: skip
_REDIRECTS = (Kind.REDIRECT_LOOP, Kind.REDIRECT_MANY, Kind.REDIRECT_TO, Kind.REFUSED)
_LOOK_UP = (*_AT_EVERY_HOP, Kind.NOT_JSON, Kind.WRONG_SHAPE)
_CUTS = (Kind.RESET, Kind.STALL, Kind.CLOSE_EARLY, Kind.CHUNKED_UNTERMINATED)
# Faults that only affect a resumed download.
_RESUMPTIONS = (
    Kind.CHANGED, Kind.CHANGED_SILENTLY, Kind.NO_ETAG, Kind.WEAK_ETAG, Kind.NO_RANGES,
    Kind.WRONG_OFFSET, Kind.WRONG_TOTAL, Kind.WRONG_ETAG, Kind.NO_LENGTH, Kind.CLOSE_DELIMITED,
)  # fmt: skip
_BODIES = (
    Kind.EXPIRED_TARGET,
    Kind.DRIP,
    Kind.WRONG_TYPE,
    Kind.LONGER,
    Kind.SECOND_RESPONSE,
    Kind.ENDLESS_TRAILERS,
    Kind.PADDED_HEADERS,
)
_AT_STORAGE = (*_AT_EVERY_HOP, *_REDIRECTS, *_CUTS, *_CUTS, *_RESUMPTIONS, *_BODIES)


def hop_faults(dice: random.Random, rate: float) -> tuple[Fault | None, ...]:
    """Draw the faults of an image's requests to the API or its asset server."""
    return tuple(_drawn(dice, (*_AT_EVERY_HOP, *_REDIRECTS), rate, 0) for _ in range(SCRIPTED_REQUESTS))


def outage_faults(dice: random.Random) -> tuple[Fault, ...]:
    """Draw the faults of an image's requests during an outage of the API."""
    down = (Fault(Kind.STATUS), Fault(Kind.RESET))
    return tuple(dice.choice(down) for _ in range(SCRIPTED_REQUESTS))


def look_up_faults(dice: random.Random, rate: float) -> tuple[Fault | None, ...]:
    """Draw the faults of an order's look-ups."""
    return tuple(_drawn(dice, _LOOK_UP, rate, 0) for _ in range(SCRIPTED_REQUESTS))


def storage_faults(dice: random.Random, rate: float, size: int, *, has_end_marker: bool) -> tuple[Fault | None, ...]:
    """Draw the faults of an image's requests to the storage.

    Truncations are also drawn in pairs with what may follow: independent draws would rarely truncate a download and
    then change the image. ``has_end_marker`` says whether the image ends in a marker: ``WRONG_MAGIC`` sends other
    content under the entity tag of the image (against RFC 9110 section 8.8.1), which nothing else could detect on a
    resumed request.
    """
    kinds = (*_AT_STORAGE, Kind.WRONG_MAGIC) if has_end_marker else _AT_STORAGE
    faults: list[Fault | None] = []
    while len(faults) < SCRIPTED_REQUESTS:
        if dice.random() < rate / 4:
            faults += [_fault(dice, dice.choice(_CUTS), size, in_body=True), _fault(dice, dice.choice(kinds), size)]
        else:
            faults.append(_drawn(dice, kinds, rate, size))
    return tuple(faults)


def _drawn(dice: random.Random, kinds: Sequence[Kind], rate: float, size: int) -> Fault | None:
    return _fault(dice, dice.choice(kinds), size) if dice.random() < rate else None


def _fault(dice: random.Random, kind: Kind, size: int, *, in_body: bool = False) -> Fault:
    """Draw the parameters of a fault; ``size`` is 0 without a body."""
    chosen: dict[str, Any] = {}
    match kind:
        case Kind.STATUS:
            status = dice.choice(_FINAL_STATUSES if dice.random() < _FINAL_SHARE else _RETRIED_STATUSES)
            chosen = {"status": status, "json_body": dice.random() < 0.5, "retry_after": dice.choice(_RETRY_AFTER)}
        case Kind.PAUSE:
            chosen = {"gate": Gate(), "after_bytes": _cut(dice, size) if size and dice.random() < 0.5 else None}
        case Kind.RESET | Kind.STALL | Kind.CLOSE_EARLY | Kind.CHUNKED_UNTERMINATED:
            chosen = {"after_bytes": _cut(dice, size) if size and (in_body or dice.random() < 0.8) else None}
        case Kind.SLOW_START:
            chosen = {"delay_seconds": dice.choice((0.02, 0.1, 0.3))}
        case Kind.DRIP:
            chosen = {"chunk_bytes": max(1, size // dice.randint(2, 20)), "delay_seconds": 0.01}
        case Kind.REDIRECT_MANY:
            chosen = {"hops": dice.choice((1, 3, 5, 20))}
        case Kind.REDIRECT_TO:
            chosen = {"location": dice.choice(_ELSEWHERE)}
        case _:
            pass
    return Fault(kind, **chosen)


def _cut(dice: random.Random, size: int) -> int:
    """Return where a body is truncated: anywhere, but often at the edges."""
    edges = (0, 1, dice.randrange(64), dice.randrange(4096), size - 1, BEYOND_THE_END)
    return dice.choice(edges) if dice.random() < 0.5 else dice.randrange(size)
