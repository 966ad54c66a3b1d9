"""Fault injection before the response headers, the same at every origin."""

import asyncio

from aiohttp import web

from service.sandbox.faults import Fault, FaultPlan, Kind
from service.sandbox.payloads import problem
from service.sandbox.raw_response import RawResponse
from service.sandbox.records import RECORD, RequestRecord
from service.sandbox.state import RedirectTarget

_HTML_PAGE = "<!doctype html><title>Something else</title><p>This is not an image.</p>"


async def stall() -> None:
    """Wait until the client leaves or the sandbox closes: both cancel the handler."""
    await asyncio.get_running_loop().create_future()


def take_fault(request: web.Request, faults: FaultPlan, subject_id: str, origin: str) -> Fault | None:
    """Take the fault of a request from the plan and record it."""
    fault = faults.take(subject_id, origin)
    if origin == "asset" and fault is None:
        # The storage cannot refuse its own connections: the asset hop redirects to a closed port instead.
        fault = faults.take(subject_id, "storage", only=Kind.REFUSED)
    if fault is not None:
        request[RECORD].fault = fault.kind.value
    return fault


async def before_headers(request: web.Request, fault: Fault | None) -> web.StreamResponse | None:
    """Inject a fault and return its response, or None to let the handler continue.

    Redirects and faults of the body need the handler's own response and are left to the handler.
    """
    if fault is None or fault.after_bytes is not None:
        return None
    match fault.kind:
        case Kind.RESET:
            return await RawResponse(request).reset()
        case Kind.CLOSE_REUSED:
            return await RawResponse(request).close() if request[RECORD].reused else None
        case Kind.STALL:
            await stall()
        case Kind.PAUSE if fault.gate is not None:
            await fault.gate.hold()
        case Kind.SLOW_START:
            await asyncio.sleep(fault.delay_seconds)
        case _:
            return _whole_response(fault)
    return None


def ends_reused_connection(record: RequestRecord, fault: Fault | None) -> bool:
    """Return whether a fault closes a reused connection before a response: the client may repeat that request."""
    kinds = {Kind.RESET, Kind.CLOSE_REUSED}
    return record.reused and fault is not None and fault.kind in kinds and fault.after_bytes is None


def redirect_instead(fault: Fault | None, target: RedirectTarget, here: str, closed_origin: str) -> str | None:
    """Return the location of a redirect fault, or None for any other fault.

    ``here`` is the URL of this hop, which redirects to itself in a loop or a chain.
    """
    if fault is None:
        return None
    match fault.kind:
        case Kind.REDIRECT_LOOP:
            target.looping = True
            return here
        case Kind.REDIRECT_MANY:
            target.hops = fault.hops - 1
            return f"{here}{'&' if '?' in here else '?'}hop={fault.hops}"
        case Kind.REDIRECT_TO:
            return fault.location
        case Kind.REFUSED:
            return f"{closed_origin}/enhanced/refused"
        case _:
            return None


def next_hop(target: RedirectTarget, here: str) -> str | None:
    """Return the next location of a running redirect loop or chain, or None without one."""
    if target.looping:
        return here
    if target.hops > 0:
        target.hops -= 1
        return f"{here}{'&' if '?' in here else '?'}hop={target.hops + 1}"
    return None


def redirect(location: str) -> web.Response:
    """Return a 302 with the HTML page that the API's framework adds."""
    page = "<!doctype html>\n<html lang=en>\n<title>Redirecting...</title>\n<h1>Redirecting...</h1>\n"
    return web.Response(status=302, text=page, content_type="text/html", headers={"Location": location})


def _whole_response(fault: Fault) -> web.Response | None:
    """Return the response that replaces the handler's, if the fault is one."""
    match fault.kind:
        case Kind.STATUS:
            return _status(fault)
        case Kind.HTML:
            return web.Response(text=_HTML_PAGE, content_type="text/html")
        case Kind.JSON:
            return web.json_response({"url": "https://images.invalid/1.jpg"})
        case Kind.NOT_JSON:
            return web.Response(text='{"order_id": ', content_type="application/json")
        case Kind.WRONG_SHAPE:
            return web.json_response(["orders", {"images": 7}])
        case _:
            return None


def _status(fault: Fault) -> web.Response:
    if fault.json_body:
        response = problem(fault.status)
    else:
        page = f"<html><body><h1>{fault.status}</h1></body></html>"
        response = web.Response(status=fault.status, text=page, content_type="text/html")
    if fault.retry_after is not None:
        response.headers["Retry-After"] = str(fault.retry_after)
    return response
