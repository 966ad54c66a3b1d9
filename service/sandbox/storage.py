"""Storage origin: serves bodies as S3 does for presigned URLs, with the scripted faults."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from xml.sax.saxutils import escape

from aiohttp import web

from service.sandbox.bodies import CHUNK_BYTES, Body, ChangedBody, NoiseBody, chunks
from service.sandbox.config import SandboxConfig
from service.sandbox.fault_injection import (
    before_headers,
    ends_reused_connection,
    next_hop,
    redirect,
    redirect_instead,
    stall,
    take_fault,
)
from service.sandbox.faults import Fault, FaultPlan, Kind
from service.sandbox.image_bodies import ImageBodies
from service.sandbox.ranges import RangeResponse, Representation, plan_response
from service.sandbox.raw_response import RawResponse
from service.sandbox.records import RECORD, RequestRecord
from service.sandbox.state import RedirectTarget, SandboxImage, SandboxState
from service.sandbox.variants import Variant

_EXTRA_BYTES = b"\r\nmore than Content-Length"
_SECOND_BODY = b"\xff\xd8\xff\xe0 not requested \xff\xd9"
_SECOND_RESPONSE = (
    b'HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nETag: "second"\r\nContent-Length: %d\r\n\r\n' % len(_SECOND_BODY)
) + _SECOND_BODY
_PADDING = " \t "
_OTHER_ETAG = '"00000000000000000000000000000000"'


@dataclass(frozen=True, slots=True)
class _Framing:
    """How the end of a body is marked: Content-Length, chunks, or neither."""

    length: bool = True
    chunked: bool = False


def xml_error(status: int, code: str, message: str, extra: Mapping[str, object] | None = None) -> web.Response:
    """Return an error response in S3's format."""
    details = "".join(f"<{key}>{escape(str(value))}</{key}>" for key, value in (extra or {}).items())
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{escape(message)}</Message>{details}"
        "<RequestId>0000000000000000</RequestId></Error>"
    )
    return web.Response(status=status, text=text, content_type="application/xml")


class Storage:
    """Handlers for downloads from the storage."""

    def __init__(self, state: SandboxState, config: SandboxConfig, faults: FaultPlan, bodies: ImageBodies) -> None:
        self._state = state
        self._config = config
        self._faults = faults
        self._bodies = bodies
        self.origin = ""
        self.closed_origin = ""

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/enhanced/{image_id}", self.get, allow_head=False),
            web.head("/enhanced/{image_id}", self.head),
        ]

    async def head(self, request: web.Request) -> web.StreamResponse:
        """Reject the request: a URL signed for GET is not signed for HEAD."""
        del request
        return xml_error(403, "SignatureDoesNotMatch", "The request signature we calculated does not match.")

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Serve a body for a valid presigned URL."""
        # 1. Check the credentials and the signature
        if (rejection := reject_credentials(request)) is not None:
            return rejection
        target = self._state.use_target(request.query.get("X-Amz-Signature", ""))
        if target is None or target.image.image_id != request.match_info["image_id"]:
            return xml_error(403, "AccessDenied", "Access Denied")
        request[RECORD].token = target.token
        # 2. Redirect on, if a fault of that kind is scripted or running
        location, fault = next_hop(target, self._here(request)), None
        if location is None:
            fault = take_fault(request, self._faults, target.image.image_id, "storage")
            location = redirect_instead(fault, target, self._here(request), self.closed_origin)
        if location is not None:
            # The redirect leads the client back here: that is not a reuse of the URL.
            target.uses -= 1
            return redirect(location)
        if ends_reused_connection(request[RECORD], fault):
            target.uses -= 1
        # 3. Serve the body with its fault
        return await self._before_body(request, target, fault) or await self._serve(request, target, fault)

    def _here(self, request: web.Request) -> str:
        signature = request.query["X-Amz-Signature"]
        return f"{self.origin}{request.rel_url.raw_path}?X-Amz-Expires=300&X-Amz-Signature={signature}"

    async def _before_body(
        self, request: web.Request, target: RedirectTarget, fault: Fault | None
    ) -> web.StreamResponse | None:
        if target.expired or (fault is not None and fault.kind is Kind.EXPIRED_TARGET):
            return xml_error(403, "AccessDenied", "Request has expired", {"X-Amz-Expires": 300})
        if self._config.latency_seconds > 0:
            await asyncio.sleep(self._config.latency_seconds)
        return await before_headers(request, fault)

    async def _serve(self, request: web.Request, target: RedirectTarget, fault: Fault | None) -> web.StreamResponse:
        image, variant = target.image, target.variant
        body = _altered(await self._bodies.body(image, variant), fault)
        representation = _distort_representation(self._representation(image, variant, body), fault)
        planned = plan_response(body.size, representation, request.headers)
        if planned is None:
            sizes = {"RangeRequested": request.headers["Range"], "ActualObjectSize": body.size}
            return xml_error(416, "InvalidRange", "The requested range is not satisfiable", sizes)
        planned = _distort_response(planned, body, fault)
        framing = _framing(fault, length=representation.content_length)
        return await _Delivery(RawResponse(request), request[RECORD], body, planned, framing, fault).run()

    def _representation(self, image: SandboxImage, variant: Variant, body: Body) -> Representation:
        def choose(own: bool | None, default: bool) -> bool:  # noqa: FBT001 - two values of one type
            return default if own is None else own

        return Representation(
            content_type=self._bodies.content_type(image, variant),
            etag=body.etag if choose(image.etags, self._config.etags) else None,
            ranges=choose(image.ranges, self._config.ranges),
            content_length=choose(image.content_lengths, self._config.content_lengths),
        )


def reject_credentials(request: web.Request) -> web.Response | None:
    """Return the error for a request with credentials beside its presigned URL, None without them."""
    if "x-api-key" in request.headers:
        return xml_error(403, "AccessDenied", "The API key must not be sent to the storage")
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


def _distort_representation(representation: Representation, fault: Fault | None) -> Representation:
    if fault is None:
        return representation
    match fault.kind:
        case Kind.WRONG_TYPE:
            return replace(representation, content_type=fault.content_type)
        case Kind.CHANGED_SILENTLY | Kind.NO_ETAG:
            return replace(representation, etag=None)
        case Kind.WEAK_ETAG:
            return replace(representation, etag=representation.etag and f"W/{representation.etag}")
        case Kind.NO_RANGES:
            return replace(representation, ranges=False)
        case _:
            return representation


def _distort_response(planned: RangeResponse, body: Body, fault: Fault | None) -> RangeResponse:
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
    """One response with a body."""

    raw: RawResponse
    record: RequestRecord
    body: Body
    planned: RangeResponse
    framing: _Framing
    fault: Fault | None

    async def run(self) -> web.StreamResponse:
        """Send headers and body, and inject the fault into the body."""
        planned, fault, raw = self.planned, self.fault, self.raw
        self.record.status = planned.status
        padded = fault is not None and fault.kind is Kind.PADDED_HEADERS
        await raw.send_headers(planned.status, self._headers(), padding=_PADDING if padded else "")
        cut = _cut(planned, fault)
        await self._part(planned.start, cut)
        if fault is not None and (ended := await _inject(raw, fault, planned.status)) is not None:
            return ended
        await self._part(cut, planned.stop)
        if fault is not None and fault.kind is Kind.ENDLESS_TRAILERS:
            await raw.endless_trailers()
        if self.framing.chunked:
            second = fault is not None and fault.kind is Kind.SECOND_RESPONSE
            await raw.end_chunks(_SECOND_RESPONSE if second else b"")
        return raw.done(planned.status, reusable=True)

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
        for chunk in chunks(self.body, start, stop, size=drip.chunk_bytes if drip else CHUNK_BYTES):
            await self.raw.send(chunk, chunked=self.framing.chunked)
            self.record.bytes_sent = self.raw.bytes_sent
            if drip is not None:
                await asyncio.sleep(drip.delay_seconds)


def _cut(planned: RangeResponse, fault: Fault | None) -> int:
    """Return the offset in the body at which the fault is injected, or the end without one."""
    if fault is None or fault.after_bytes is None:
        return planned.stop
    return min(planned.start + fault.after_bytes, max(planned.start, planned.stop - 1))


async def _inject(raw: RawResponse, fault: Fault, status: int) -> web.StreamResponse | None:
    """Inject a fault in or after the body; return None if the rest of the body follows."""
    in_body = fault.after_bytes is not None
    match fault.kind:
        case Kind.RESET if in_body:
            return await raw.reset(status)
        case Kind.CLOSE_EARLY | Kind.CHUNKED_UNTERMINATED:
            return await raw.close(status)
        case Kind.STALL if in_body:
            await stall()
        case Kind.PAUSE if in_body and fault.gate is not None:
            await fault.gate.hold()
        case Kind.LONGER:
            await raw.send(_EXTRA_BYTES)
            return await raw.close(status)
        case Kind.CLOSE_DELIMITED:
            return await raw.close(status)
        case _:
            pass
    return None
