"""``Expect: 100-continue`` (RFC 9110 section 10.1.1): whoever asks first is not told to send what will be refused.

aiohttp answers it when a route is found, before anything of ours is asked. Here it is held back until a handler wants
the body: who is refused before that is spared sending it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy

from service.errors import BadRequest

# What the client wants to be told before it sends the body; gone as soon as it is.
_EXPECTATION = web.RequestKey("expectation", str)
_CONTINUE = "100-continue"

_RequestT = TypeVar("_RequestT", bound=web.BaseRequest)


def defer_continue(make: Callable[..., _RequestT]) -> Callable[..., _RequestT]:
    """Return a factory of requests that keeps their ``Expect`` from aiohttp."""

    def made(message: RawRequestMessage, *others: Any) -> _RequestT:
        if hdrs.EXPECT not in message.headers:
            return make(message, *others)
        headers = CIMultiDict(message.headers)
        expected = headers.popall(hdrs.EXPECT)
        request = make(message._replace(headers=CIMultiDictProxy(headers)), *others)
        if message.version >= HttpVersion11:  # older ones do not mean it
            request[_EXPECTATION] = ", ".join(expected).lower()
        return request

    return made


def check_expectation(request: web.Request) -> None:
    """Refuse what is expected and is not known.

    Raises:
        BadRequest
    """
    if request.get(_EXPECTATION, _CONTINUE) != _CONTINUE:
        raise BadRequest("The field Expect asks for something other than 100-continue.")


async def send_continue(request: web.Request) -> None:
    """Tell a client that waits for it to send the body. To be called before a body is read."""
    if _EXPECTATION in request:
        del request[_EXPECTATION]
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the response has not begun


def is_continue_pending(request: web.Request) -> bool:
    """Whether the client still holds a body back: what it sends next could be that, or another request."""
    return _EXPECTATION in request and request.body_exists
