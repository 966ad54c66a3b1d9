"""Scripted misbehaviour: which request of which image goes wrong, and how.

Decisions only; ``wire`` and ``storage`` carry them out. The same script and seed give the same faults whatever the
order in which requests of different images arrive.
"""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

Origin = Literal["api", "asset", "storage", "upload"]
# Stands for every image in ``FaultPlan.always``.
ANY_IMAGE = "*"


class Kind(StrEnum):
    """What goes wrong. Kinds with ``after_bytes`` count the bytes of the response at hand, resumed or not."""

    # At any origin
    STATUS = "status"  # status, json_body, retry_after
    RESET = "reset"  # TCP RST: before the headers, or after_bytes of the body
    SILENCE = "silence"  # nothing more is sent: before the headers, or after_bytes of the body
    PAUSE = "pause"  # as silence, until its gate is released
    SLOW_START = "slow_start"  # delay_seconds before the headers
    CLOSE_REUSED = "close_reused"  # a clean end instead of a response, unless the connection is new
    HTML = "html"  # 200 with an HTML page
    JSON = "json"  # 200 with a JSON object
    REDIRECT_LOOP = "redirect_loop"
    REDIRECT_MANY = "redirect_many"  # hops more redirects before the image
    REDIRECT_TO = "redirect_to"  # location
    REFUSED = "refused"  # a redirect to a port where nobody listens
    # On the look-up of an order
    NOT_JSON = "not_json"
    WRONG_SHAPE = "wrong_shape"  # valid JSON of the wrong type
    # At the storage origin
    EXPIRED_TARGET = "expired_target"  # 403 with XML, as for an expired signature
    CLOSE_EARLY = "close_early"  # a clean end of the connection after_bytes, short of the promised length
    CHUNKED_UNTERMINATED = "chunked_unterminated"  # chunked, and a clean end without the last chunk
    DRIP = "drip"  # chunk_bytes every delay_seconds
    WRONG_TYPE = "wrong_type"  # the image with content_type
    WRONG_MAGIC = "wrong_magic"  # called an image, but none
    LONGER = "longer"  # more bytes than Content-Length promised
    SECOND_RESPONSE = "second_response"  # chunked, and another response right behind the last chunk
    ENDLESS_TRAILERS = "endless_trailers"  # chunked, and trailers behind the last chunk until the client closes
    PADDED_HEADERS = "padded_headers"  # white space around every header value
    CHANGED = "changed"  # other content, another length and another entity tag
    CHANGED_SILENTLY = "changed_silently"  # other content of the same length, no entity tag
    NO_ETAG = "no_etag"
    WEAK_ETAG = "weak_etag"
    NO_RANGES = "no_ranges"  # 200 with everything, whatever range was asked for
    WRONG_OFFSET = "wrong_offset"  # 206 which starts elsewhere than asked
    WRONG_TOTAL = "wrong_total"  # 206 which states another total length
    WRONG_ETAG = "wrong_etag"  # 206 with the entity tag of something else
    NO_LENGTH = "no_length"  # chunked instead of Content-Length
    CLOSE_DELIMITED = "close_delimited"  # neither length nor chunks: the end of the connection is the end


_ORDER_KINDS = frozenset({Kind.NOT_JSON, Kind.WRONG_SHAPE})
_HOP_KINDS = frozenset({Kind.REDIRECT_LOOP, Kind.REDIRECT_MANY, Kind.REDIRECT_TO, Kind.REFUSED})
# Kinds which every handler can carry out before it sends its own headers.
ANYWHERE = frozenset(
    {Kind.STATUS, Kind.RESET, Kind.SILENCE, Kind.PAUSE, Kind.SLOW_START, Kind.CLOSE_REUSED, Kind.HTML, Kind.JSON}
    | _HOP_KINDS
)
# Kinds which have a body by nature: without a number of bytes they end right behind the headers.
_BODY_CUT_KINDS = frozenset({Kind.CLOSE_EARLY, Kind.CHUNKED_UNTERMINATED})
_CUT_KINDS = _BODY_CUT_KINDS | {Kind.RESET, Kind.SILENCE}
_COUNTING_KINDS = _CUT_KINDS | {Kind.PAUSE}


class Gate:
    """A place where a response stops until it is let go."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._released = asyncio.Event()

    def release(self) -> None:
        """Let the response go on, now or when it arrives."""
        self._released.set()

    async def hold(self) -> None:
        """Report the arrival and wait to be released."""
        self.reached.set()
        await self._released.wait()


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault with its parameters; which of them count is said beside each kind.

    ``after_bytes`` is None for "before the headers", 0 for "after the headers"; a number beyond the response's end
    stands for its last byte but one, so that a fault always shows. ``retry_after`` is sent as it is written.
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
class _Randomness:
    rate: float
    faults: Sequence[Fault | Kind]
    seed: int
    origin: Origin
    max_per_image: int | None
    given: Counter[str] = field(default_factory=Counter)


class FaultPlan:
    """All faults that will happen. A script comes first, then what holds always, then chance."""

    def __init__(self) -> None:
        self.injected: Counter[Kind] = Counter()
        self._scripts: dict[tuple[str, str], deque[Fault | None]] = {}
        self._always: dict[tuple[str, str], Fault] = {}
        self._chances: list[_Randomness] = []
        self._seen: Counter[tuple[str, str]] = Counter()
        self._gates: list[Gate] = []

    def script(self, image_id: str, faults: Iterable[Fault | None], *, origin: Origin = "storage") -> None:
        """Fix what happens to the next requests of an image at one origin, one by one; None is no fault."""
        self._append(origin, image_id, faults)

    def order(self, order_id: str, faults: Iterable[Fault | None]) -> None:
        """Fix what happens to the next look-ups of an order, one by one."""
        self._append("order", order_id, faults)

    def always(self, image_id: str, fault: Fault | None, *, origin: Origin = "storage") -> None:
        """Make every request of an image (or of ``ANY_IMAGE``) go wrong; None ends it."""
        if fault is None:
            self._always.pop((origin, image_id), None)
        else:
            self._always[origin, image_id] = _checked(origin, fault)

    def random(
        self,
        rate: float,
        kinds: Sequence[Fault | Kind],
        *,
        seed: int = 0,
        origin: Origin = "storage",
        max_per_image: int | None = None,
    ) -> None:
        """Make a share of all requests go wrong, at most ``max_per_image`` of each image.

        A kind without parameters gets a random number of bytes where it needs one.
        """
        for item in kinds:
            _checked(origin, item if isinstance(item, Fault) else Fault(item))
        self._chances.append(_Randomness(rate, tuple(kinds), seed, origin, max_per_image))

    def pause(self, image_id: str, *, after_bytes: int | None = None, origin: Origin = "storage") -> Gate:
        """Stop the next request of an image before its headers, or after some bytes; return its gate."""
        gate = Gate()
        self._gates.append(gate)
        self._append(origin, image_id, [Fault(Kind.PAUSE, after_bytes=after_bytes, gate=gate)])
        return gate

    def pause_order(self, order_id: str) -> Gate:
        """Stop the next look-up of an order before its headers; return its gate."""
        gate = Gate()
        self._gates.append(gate)
        self.order(order_id, [Fault(Kind.PAUSE, gate=gate)])
        return gate

    def clear(self) -> None:
        """Forget every fault to come and release every gate."""
        self._scripts.clear()
        self._always.clear()
        self._chances.clear()
        self.release_all()

    def release_all(self) -> None:
        """Release every gate handed out."""
        for gate in self._gates:
            gate.release()
        self._gates.clear()

    def take(self, subject_id: str, origin: str, *, only: Kind | None = None) -> Fault | None:
        """Return the fault of the request at hand and count the request.

        With ``only``, nothing is taken or counted unless the fault is of that kind: a server cannot refuse its own
        connections, so the hop before it asks.
        """
        key = (origin, subject_id)
        fault, chance = self._next(key)
        if only is not None and (fault is None or fault.kind is not only):
            return None
        self._seen[key] += 1
        if (script := self._scripts.get(key)) is not None:
            script.popleft()
            if not script:
                del self._scripts[key]
        if chance is not None:
            chance.given[subject_id] += 1
        if fault is not None:
            self.injected[fault.kind] += 1
        return fault

    def _append(self, origin: str, subject_id: str, faults: Iterable[Fault | None]) -> None:
        checked = [None if fault is None else _checked(origin, fault) for fault in faults]
        if checked:
            self._scripts.setdefault((origin, subject_id), deque()).extend(checked)

    def _next(self, key: tuple[str, str]) -> tuple[Fault | None, _Randomness | None]:
        origin, _ = key
        if key in self._scripts:
            return self._scripts[key][0], None
        fixed = self._always.get(key) or self._always.get((origin, ANY_IMAGE))
        if fixed is not None:
            return fixed, None
        for chance in self._chances:
            if (fault := self._thrown(chance, key)) is not None:
                return fault, chance
        return None, None

    def _thrown(self, chance: _Randomness, key: tuple[str, str]) -> Fault | None:
        origin, subject_id = key
        if chance.origin != origin:
            return None
        if chance.max_per_image is not None and chance.given[subject_id] >= chance.max_per_image:
            return None
        dice = random.Random(f"{chance.seed}/{origin}/{subject_id}/{self._seen[key]}")
        if dice.random() >= chance.rate:
            return None
        chosen = dice.choice(chance.faults)
        if isinstance(chosen, Fault):
            return chosen
        return Fault(chosen, after_bytes=dice.randrange(4096) if chosen in _CUT_KINDS else None)


def _checked(origin: str, fault: Fault) -> Fault:
    if origin == "storage":
        fits = fault.kind not in _ORDER_KINDS
    elif origin == "order":
        fits = fault.kind in (ANYWHERE | _ORDER_KINDS) - _HOP_KINDS
    elif origin == "upload":
        fits = fault.kind in ANYWHERE - _HOP_KINDS
    else:
        fits = fault.kind in ANYWHERE
    if not fits:
        raise ValueError(f"the {origin} cannot misbehave by {fault.kind}")
    if origin != "storage" and fault.after_bytes is not None:
        # Redirects and JSON are too short to be cut in the middle in a meaningful way.
        raise ValueError(f"after_bytes has a meaning at the storage only, not at the {origin}")
    if fault.kind not in _COUNTING_KINDS and fault.after_bytes is not None:
        raise ValueError(f"after_bytes has no meaning for {fault.kind}")
    if fault.kind is Kind.REDIRECT_TO and not fault.location:
        raise ValueError("a redirect needs a location")
    if fault.kind is Kind.PAUSE and fault.gate is None:
        raise ValueError("a pause needs a gate: use pause()")
    if fault.kind in _BODY_CUT_KINDS and fault.after_bytes is None:
        return replace(fault, after_bytes=0)
    return fault
