"""Fault plan: which request of which image fails, and how.

Decisions only; ``fault_injection`` and ``storage`` inject them. The same script and seed give the same faults in
whatever sequence the requests for different images arrive.
"""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

Origin = Literal["api", "asset", "storage", "upload"]
# Matches every image in ``FaultPlan.always``.
ANY_IMAGE = "*"


class Kind(StrEnum):
    """Kinds of faults. ``after_bytes`` counts the body of the current response, resumed or not."""

    # At any origin
    STATUS = "status"  # status, json_body, retry_after
    RESET = "reset"  # TCP RST: before the headers, or after_bytes of the body
    STALL = "stall"  # no more bytes, connection open: before the headers, or after_bytes of the body
    PAUSE = "pause"  # as a stall, until its gate is released
    SLOW_START = "slow_start"  # delay_seconds before the headers
    CLOSE_REUSED = "close_reused"  # a clean close instead of a response, unless the connection is new
    HTML = "html"  # 200 with an HTML page
    JSON = "json"  # 200 with a JSON object
    REDIRECT_LOOP = "redirect_loop"
    REDIRECT_MANY = "redirect_many"  # hops more redirects before the image
    REDIRECT_TO = "redirect_to"  # location
    REFUSED = "refused"  # a redirect to a closed port
    # At GET /orders/{id}
    NOT_JSON = "not_json"
    WRONG_SHAPE = "wrong_shape"  # valid JSON of the wrong type
    # At the storage origin
    EXPIRED_TARGET = "expired_target"  # 403 with XML, as for an expired signature
    CLOSE_EARLY = "close_early"  # a clean close after_bytes, before Content-Length is reached
    CHUNKED_UNTERMINATED = "chunked_unterminated"  # chunked, and a clean close without the last chunk
    DRIP = "drip"  # chunk_bytes every delay_seconds
    WRONG_TYPE = "wrong_type"  # the image, with content_type
    WRONG_MAGIC = "wrong_magic"  # Content-Type of an image, but not an image
    LONGER = "longer"  # more bytes than Content-Length
    SECOND_RESPONSE = "second_response"  # chunked, and another response right behind the last chunk
    ENDLESS_TRAILERS = "endless_trailers"  # chunked, and trailers behind the last chunk until the client closes
    PADDED_HEADERS = "padded_headers"  # white space around every header value
    CHANGED = "changed"  # different content, length and entity tag
    CHANGED_SILENTLY = "changed_silently"  # different content of the same length, no entity tag
    NO_ETAG = "no_etag"
    WEAK_ETAG = "weak_etag"
    NO_RANGES = "no_ranges"  # 200 with the whole body for every Range
    WRONG_OFFSET = "wrong_offset"  # 206 that starts at another offset than requested
    WRONG_TOTAL = "wrong_total"  # 206 with another complete length
    WRONG_ETAG = "wrong_etag"  # 206 with the entity tag of something else
    NO_LENGTH = "no_length"  # chunked instead of Content-Length
    CLOSE_DELIMITED = "close_delimited"  # neither length nor chunks: the close ends the body


_ORDER_KINDS = frozenset({Kind.NOT_JSON, Kind.WRONG_SHAPE})
_HOP_KINDS = frozenset({Kind.REDIRECT_LOOP, Kind.REDIRECT_MANY, Kind.REDIRECT_TO, Kind.REFUSED})
# Kinds that every handler can inject before its own headers.
ANYWHERE = frozenset(
    {Kind.STATUS, Kind.RESET, Kind.STALL, Kind.PAUSE, Kind.SLOW_START, Kind.CLOSE_REUSED, Kind.HTML, Kind.JSON}
    | _HOP_KINDS
)
# Kinds that always cut the body: without after_bytes they cut right after the headers.
_BODY_CUT_KINDS = frozenset({Kind.CLOSE_EARLY, Kind.CHUNKED_UNTERMINATED})
_CUT_KINDS = _BODY_CUT_KINDS | {Kind.RESET, Kind.STALL}
_COUNTING_KINDS = _CUT_KINDS | {Kind.PAUSE}


class Gate:
    """A barrier at which a response waits until it is released."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._released = asyncio.Event()

    def release(self) -> None:
        """Let the response continue, now or when it arrives."""
        self._released.set()

    async def hold(self) -> None:
        """Set ``reached`` and wait for ``release``."""
        self.reached.set()
        await self._released.wait()


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault with its parameters; the comment of its kind says which of them apply.

    ``after_bytes`` is None for "before the headers" and 0 for "after the headers"; a number beyond the end of the body
    is reduced to one byte less than the body, so that a fault always takes effect. ``retry_after`` is sent unchanged.
    """

    kind: Kind
    status: int = 503
    json_body: bool = True
    retry_after: str | int | None = None
    after_bytes: int | None = None
    chunk_bytes: int = 1024
    delay_seconds: float = 0.01
    content_type: str = "application/octet-stream"
    location: str = ""
    hops: int = 20
    gate: Gate | None = None


@dataclass(slots=True)
class _RandomFaults:
    rate: float
    faults: Sequence[Fault | Kind]
    seed: int
    origin: Origin
    max_per_image: int | None
    injected: Counter[str] = field(default_factory=Counter)


class FaultPlan:
    """All planned faults. Scripts take precedence over permanent faults, and these over random ones."""

    def __init__(self) -> None:
        self.injected: Counter[Kind] = Counter()
        self._scripts: dict[tuple[str, str], deque[Fault | None]] = {}
        self._always: dict[tuple[str, str], Fault] = {}
        self._random: list[_RandomFaults] = []
        self._seen: Counter[tuple[str, str]] = Counter()
        self._gates: list[Gate] = []

    def script(self, image_id: str, faults: Iterable[Fault | None], *, origin: Origin = "storage") -> None:
        """Set the faults of the next requests for an image at one origin, one by one; None is no fault."""
        self._append(origin, image_id, faults)

    def order(self, order_id: str, faults: Iterable[Fault | None]) -> None:
        """Set the faults of the next requests for an order, one by one."""
        self._append("order", order_id, faults)

    def always(self, image_id: str, fault: Fault | None, *, origin: Origin = "storage") -> None:
        """Make every request for an image (or for ``ANY_IMAGE``) fail; None ends it."""
        if fault is None:
            self._always.pop((origin, image_id), None)
        else:
            self._always[origin, image_id] = _validated(origin, fault)

    def random(
        self,
        rate: float,
        kinds: Sequence[Fault | Kind],
        *,
        seed: int = 0,
        origin: Origin = "storage",
        max_per_image: int | None = None,
    ) -> None:
        """Make a share of all requests fail, at most ``max_per_image`` for each image.

        A kind without parameters gets a random ``after_bytes`` if it needs one.
        """
        for item in kinds:
            _validated(origin, item if isinstance(item, Fault) else Fault(item))
        self._random.append(_RandomFaults(rate, tuple(kinds), seed, origin, max_per_image))

    def pause(self, image_id: str, *, after_bytes: int | None = None, origin: Origin = "storage") -> Gate:
        """Pause the next response for an image before its headers, or after some bytes; return its gate."""
        gate = Gate()
        self._gates.append(gate)
        self._append(origin, image_id, [Fault(Kind.PAUSE, after_bytes=after_bytes, gate=gate)])
        return gate

    def pause_order(self, order_id: str) -> Gate:
        """Pause the next response for an order before its headers; return its gate."""
        gate = Gate()
        self._gates.append(gate)
        self.order(order_id, [Fault(Kind.PAUSE, gate=gate)])
        return gate

    def clear(self) -> None:
        """Remove every planned fault and release every gate."""
        self._scripts.clear()
        self._always.clear()
        self._random.clear()
        self.release_all()

    def release_all(self) -> None:
        """Release every gate."""
        for gate in self._gates:
            gate.release()
        self._gates.clear()

    def take(self, subject_id: str, origin: str, *, only: Kind | None = None) -> Fault | None:
        """Return the fault of the current request and count the request.

        With ``only``, a fault of another kind is neither taken nor counted: a server cannot refuse its own connections,
        so the hop before it takes that fault.
        """
        key = (origin, subject_id)
        fault, source = self._next(key)
        if only is not None and (fault is None or fault.kind is not only):
            return None
        self._seen[key] += 1
        if (script := self._scripts.get(key)) is not None:
            script.popleft()
            if not script:
                del self._scripts[key]
        if source is not None:
            source.injected[subject_id] += 1
        if fault is not None:
            self.injected[fault.kind] += 1
        return fault

    def _append(self, origin: str, subject_id: str, faults: Iterable[Fault | None]) -> None:
        checked = [None if fault is None else _validated(origin, fault) for fault in faults]
        if checked:
            self._scripts.setdefault((origin, subject_id), deque()).extend(checked)

    def _next(self, key: tuple[str, str]) -> tuple[Fault | None, _RandomFaults | None]:
        origin, _ = key
        if key in self._scripts:
            return self._scripts[key][0], None
        permanent = self._always.get(key) or self._always.get((origin, ANY_IMAGE))
        if permanent is not None:
            return permanent, None
        for source in self._random:
            if (fault := self._draw_fault(source, key)) is not None:
                return fault, source
        return None, None

    def _draw_fault(self, source: _RandomFaults, key: tuple[str, str]) -> Fault | None:
        origin, subject_id = key
        if source.origin != origin:
            return None
        if source.max_per_image is not None and source.injected[subject_id] >= source.max_per_image:
            return None
        rng = random.Random(f"{source.seed}/{origin}/{subject_id}/{self._seen[key]}")
        if rng.random() >= source.rate:
            return None
        chosen = rng.choice(source.faults)
        if isinstance(chosen, Fault):
            return chosen
        return Fault(chosen, after_bytes=rng.randrange(4096) if chosen in _CUT_KINDS else None)


def _validated(origin: str, fault: Fault) -> Fault:
    if origin == "storage":
        fits = fault.kind not in _ORDER_KINDS
    elif origin == "order":
        fits = fault.kind in (ANYWHERE | _ORDER_KINDS) - _HOP_KINDS
    elif origin == "upload":
        fits = fault.kind in ANYWHERE - _HOP_KINDS
    else:
        fits = fault.kind in ANYWHERE
    if not fits:
        raise ValueError(f"{fault.kind} cannot be injected at the {origin}")
    if origin != "storage" and fault.after_bytes is not None:
        # Redirects and JSON are too short to be cut in the middle.
        raise ValueError(f"after_bytes applies to the storage only, not to the {origin}")
    if fault.kind not in _COUNTING_KINDS and fault.after_bytes is not None:
        raise ValueError(f"after_bytes does not apply to {fault.kind}")
    if fault.kind is Kind.REDIRECT_TO and not fault.location:
        raise ValueError("a redirect needs a location")
    if fault.kind is Kind.PAUSE and fault.gate is None:
        raise ValueError("a pause needs a gate: use pause()")
    if fault.kind in _BODY_CUT_KINDS and fault.after_bytes is None:
        return replace(fault, after_bytes=0)
    return fault
