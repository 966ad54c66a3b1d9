"""The storage origin: serves and receives bytes as S3 does with presigned URLs, or wrongly where that is scripted."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from xml.sax.saxutils import escape

from aiohttp import web

from service.sandbox.bodies import CHUNK_BYTES, Body, ChangedBody, NoiseBody, pieces
from service.sandbox.config import Switches
from service.sandbox.fault_injection import (
    before_headers,
    ends_reused_connection,
    next_hop,
    redirect,
    redirect_instead,
    silence,
    take_fault,
)
from service.sandbox.faults import Fault, FaultPlan, Kind
from service.sandbox.image_bodies import Gallery
from service.sandbox.ranges import Answer, Traits, answer
from service.sandbox.raw_response import Wire
from service.sandbox.records import RECORD, RequestRecord
from service.sandbox.state import SandboxImage, Target, World
from service.sandbox.variants import Variant

_EXTRA_BYTES = b"\r\nmore than was promised"
_SECOND_BODY = b"\xff\xd8\xff\xe0 not requested \xff\xd9"
_SECOND_RESPONSE = (
    b'HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nETag: "second"\r\nContent-Length: %d\r\n\r\n' % len(_SECOND_BODY)
) + _SECOND_BODY
_PADDING = " \t "
_OTHER_ETAG = '"00000000000000000000000000000000"'


@dataclass(frozen=True, slots=True)
class _Framing:
    """How a body is delimited on the wire."""

    length: bool = True
    chunked: bool = False


def xml_error(status: int, code: str, message: str, extra: Mapping[str, object] | None = None) -> web.Response:
    """Return an error as S3 shapes it."""
    details = "".join(f"<{key}>{escape(str(value))}</{key}>" for key, value in (extra or {}).items())
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{escape(message)}</Message>{details}"
        "<RequestId>0000000000000000</RequestId></Error>"
    )
    return web.Response(status=status, text=text, content_type="application/xml")


class Storage:
    """Handlers for downloads from the storage."""

    def __init__(self, world: World, switches: Switches, faults: FaultPlan, gallery: Gallery) -> None:
        self._world = world
        self._switches = switches
        self._faults = faults
        self._gallery = gallery
        self.origin = ""
        self.closed_origin = ""

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/enhanced/{image_id}", self.get, allow_head=False),
            web.head("/enhanced/{image_id}", self.head),
        ]

    async def head(self, request: web.Request) -> web.StreamResponse:
        """Refuse: a URL signed for GET is not signed for HEAD."""
        del request
        return xml_error(403, "SignatureDoesNotMatch", "The request signature we calculated does not match.")

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Serve a body to the holder of a good URL."""
        # 1. Who asks with what
        if (refusal := refuse_credentials(request)) is not None:
            return refusal
        target = self._world.redeem(request.query.get("X-Amz-Signature", ""))
        if target is None or target.image.image_id != request.match_info["image_id"]:
            return xml_error(403, "AccessDenied", "Access Denied")
        request[RECORD].token = target.token
        # 2. The way on, if this is not the end of it
        onwards, fault = next_hop(target, self._here(request)), None
        if onwards is None:
            fault = take_fault(request, self._faults, target.image.image_id, "storage")
            onwards = redirect_instead(fault, target, self._here(request), self.closed_origin)
        if onwards is not None:
            # Coming back here is our doing, not a reuse by the client.
            target.uses -= 1
            return redirect(onwards)
        if ends_reused_connection(request[RECORD], fault):
            target.uses -= 1
        # 3. The body, or what the fault leaves of it
        return await self._before_body(request, target, fault) or await self._serve(request, target, fault)

    def _here(self, request: web.Request) -> str:
        signature = request.query["X-Amz-Signature"]
        return f"{self.origin}{request.rel_url.raw_path}?X-Amz-Expires=300&X-Amz-Signature={signature}"

    async def _before_body(
        self, request: web.Request, target: Target, fault: Fault | None
    ) -> web.StreamResponse | None:
        if target.expired or (fault is not None and fault.kind is Kind.EXPIRED_TARGET):
            return xml_error(403, "AccessDenied", "Request has expired", {"X-Amz-Expires": 300})
        if self._switches.latency_seconds > 0:
            await asyncio.sleep(self._switches.latency_seconds)
        return await before_headers(request, fault)

    async def _serve(self, request: web.Request, target: Target, fault: Fault | None) -> web.StreamResponse:
        image, variant = target.image, target.variant
        body = _altered(await self._gallery.body(image, variant), fault)
        traits = _distorted_traits(self._traits(image, variant, body), fault)
        planned = answer(body.size, traits, request.headers)
        if planned is None:
            sizes = {"RangeRequested": request.headers["Range"], "ActualObjectSize": body.size}
            return xml_error(416, "InvalidRange", "The requested range is not satisfiable", sizes)
        planned = _distorted_answer(planned, body, fault)
        framing = _framing(fault, length=traits.content_length)
        return await _Delivery(Wire(request), request[RECORD], body, planned, framing, fault).run()

    def _traits(self, image: SandboxImage, variant: Variant, body: Body) -> Traits:
        def switch(own: bool | None, general: bool) -> bool:  # noqa: FBT001 - two of a kind
            return general if own is None else own

        return Traits(
            content_type=self._gallery.content_type(image, variant),
            etag=body.etag if switch(image.etags, self._switches.etags) else None,
            ranges=switch(image.ranges, self._switches.ranges),
            content_length=switch(image.content_lengths, self._switches.content_lengths),
        )


def refuse_credentials(request: web.Request) -> web.Response | None:
    """Return the refusal for a request which brings credentials that a presigned URL must not meet."""
    if "x-api-key" in request.headers:
        return xml_error(403, "AccessDenied", "The API's key has no business here")
    if "Authorization" in request.headers:
        return xml_error(400, "InvalidArgument", "Only one auth mechanism allowed")
    return None


def _altered(body: Body, fault: Fault | None) -> Body:
    match fault and fault.kind:
        case Kind.CHANGED:
            return ChangedBody(body, extra=7)
        case Kind.CHANGED_SILENTLY:
            return ChangedBody(body)
        case Kind.WRONG_MAGIC:
            return NoiseBody(body)
        case _:
            return body


def _distorted_traits(traits: Traits, fault: Fault | None) -> Traits:
    if fault is None:
        return traits
    match fault.kind:
        case Kind.WRONG_TYPE:
            return replace(traits, content_type=fault.content_type)
        case Kind.CHANGED_SILENTLY | Kind.NO_ETAG:
            return replace(traits, etag=None)
        case Kind.WEAK_ETAG:
            return replace(traits, etag=traits.etag and f"W/{traits.etag}")
        case Kind.NO_RANGES:
            return replace(traits, ranges=False)
        case _:
            return traits


def _distorted_answer(planned: Answer, body: Body, fault: Fault | None) -> Answer:
    if fault is None or planned.status != 206:  # noqa: PLR2004 - HTTP: Partial Content
        return planned
    match fault.kind:
        case Kind.WRONG_OFFSET:
            start = planned.start - 1 if planned.start else min(1, planned.stop - 1)
            moved = replace(planned, start=start)
            return moved.with_header("Content-Range", f"bytes {start}-{planned.stop - 1}/{body.size}")
        case Kind.WRONG_TOTAL:
            return planned.with_header("Content-Range", f"bytes {planned.start}-{planned.stop - 1}/{body.size + 1}")
        case Kind.WRONG_ETAG:
            return planned.with_header("ETag", _OTHER_ETAG)
        case _:
            return planned


def _framing(fault: Fault | None, *, length: bool) -> _Framing:
    match fault and fault.kind:
        case Kind.CLOSE_DELIMITED:
            return _Framing(length=False)
        case Kind.NO_LENGTH | Kind.CHUNKED_UNTERMINATED | Kind.SECOND_RESPONSE | Kind.ENDLESS_TRAILERS:
            return _Framing(length=False, chunked=True)
        case _:
            return _Framing(length=length, chunked=not length)


@dataclass(slots=True)
class _Delivery:
    """One body on its way."""

    wire: Wire
    record: RequestRecord
    body: Body
    planned: Answer
    framing: _Framing
    fault: Fault | None

    async def run(self) -> web.StreamResponse:
        """Send headers and body, with what the fault does to the latter."""
        planned, fault, wire = self.planned, self.fault, self.wire
        self.record.status = planned.status
        padded = fault is not None and fault.kind is Kind.PADDED_HEADERS
        await wire.head(planned.status, self._headers(), padding=_PADDING if padded else "")
        cut = _cut(planned, fault)
        await self._part(planned.start, cut)
        if fault is not None and (ended := await _misbehave(wire, fault, planned.status)) is not None:
            return ended
        await self._part(cut, planned.stop)
        if fault is not None and fault.kind is Kind.ENDLESS_TRAILERS:
            await wire.endless_trailers()
        if self.framing.chunked:
            second = fault is not None and fault.kind is Kind.SECOND_RESPONSE
            await wire.end_chunks(_SECOND_RESPONSE if second else b"")
        return wire.done(planned.status, reusable=True)

    def _headers(self) -> dict[str, str]:
        headers = {"Date": formatdate(usegmt=True), "Server": "SandboxStorage", **self.planned.headers}
        if self.framing.length:
            headers["Content-Length"] = str(self.planned.stop - self.planned.start)
        elif self.framing.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Connection"] = "close"
        return headers

    async def _part(self, start: int, stop: int) -> None:
        drip = self.fault if self.fault is not None and self.fault.kind is Kind.DRIP else None
        for piece in pieces(self.body, start, stop, size=drip.chunk_bytes if drip else CHUNK_BYTES):
            await self.wire.send(piece, chunked=self.framing.chunked)
            self.record.bytes_sent = self.wire.bytes_sent
            if drip is not None:
                await asyncio.sleep(drip.delay_seconds)


def _cut(planned: Answer, fault: Fault | None) -> int:
    """Return the offset in the body at which a fault strikes: its end if there is none."""
    if fault is None or fault.after_bytes is None:
        return planned.stop
    return min(planned.start + fault.after_bytes, max(planned.start, planned.stop - 1))


async def _misbehave(wire: Wire, fault: Fault, status: int) -> web.StreamResponse | None:
    """Carry out a fault in or behind the body; return None if the rest of the body follows."""
    in_body = fault.after_bytes is not None
    match fault.kind:
        case Kind.RESET if in_body:
            return await wire.reset(status)
        case Kind.CLOSE_EARLY | Kind.CHUNKED_UNTERMINATED:
            return await wire.close(status)
        case Kind.SILENCE if in_body:
            await silence()
        case Kind.PAUSE if in_body and fault.gate is not None:
            await fault.gate.hold()
        case Kind.LONGER:
            await wire.send(_EXTRA_BYTES)
            return await wire.close(status)
        case Kind.CLOSE_DELIMITED:
            return await wire.close(status)
        case _:
            pass
    return None
