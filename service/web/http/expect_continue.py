"""``Expect: 100-continue`` (RFC 9110 section 10.1.1), sent when a handler reads the body.

aiohttp sends ``100 Continue`` as soon as a route matches, before any check of ours. Here it is deferred until a handler
reads the body, so that a client whose request is rejected does not send its body in vain.

Uses these internals of aiohttp: ``web.Server.request_factory`` with its ``RawRequestMessage``, a named tuple, and
``AbstractStreamWriter.output_size``.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy

from service.errors import BadRequest

# The value of ``Expect``, until ``100 Continue`` is sent.
_EXPECTATION = web.RequestKey("expectation", str)
_CONTINUE = "100-continue"

_RequestT = TypeVar("_RequestT", bound=web.BaseRequest)


def defer_continue(factory: Callable[..., _RequestT]) -> Callable[..., _RequestT]:
    """Wrap a request factory so that it hides ``Expect`` from aiohttp."""

    def make_request(message: RawRequestMessage, *args: Any) -> _RequestT:
        if hdrs.EXPECT not in message.headers:
            return factory(message, *args)
        headers = CIMultiDict(message.headers)
        values = headers.popall(hdrs.EXPECT)
        request = factory(message._replace(headers=CIMultiDictProxy(headers)), *args)
        if message.version >= HttpVersion11:  # RFC 9110 section 10.1.1: to be ignored from HTTP/1.0
            request[_EXPECTATION] = ", ".join(values).lower()
        return request

    return make_request


def check_expectation(request: web.Request) -> None:
    """Reject expectations other than ``100-continue``.

    Raises:
        BadRequest
    """
    if request.get(_EXPECTATION, _CONTINUE) != _CONTINUE:
        raise BadRequest("The only supported value of Expect is 100-continue.")


async def send_continue(request: web.Request) -> None:
    """Send ``100 Continue``, if the client waits for it. To be called before a body is read."""
    if _EXPECTATION in request:
        del request[_EXPECTATION]
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # aiohttp would take the final response for started


def is_continue_pending(request: web.Request) -> bool:
    """Whether the client still waits to send its body: its next bytes may be that body, or another request."""
    return _EXPECTATION in request and request.body_exists
