"""Bounded reads of whole request bodies, within a deadline and a size.

Every handler that needs a body as bytes uses ``read_body``. Uploads are streamed, with an idle timeout instead.
"""

import asyncio

from aiohttp import web
from aiohttp.http import HttpProcessingError

from service.errors import InvalidBody, RequestBodyTimeout
from service.web.http.context import HTTP
from service.web.http.expect_continue import send_continue

# What aiohttp raises while it reads a body with malformed framing.
FRAMING_ERRORS = (HttpProcessingError,)


async def read_body(request: web.Request, *, max_bytes: int) -> bytes:
    """Return the body of a request, at most ``max_bytes`` of it.

    Sends ``100 Continue`` first, if the client waits for it. The deadline is REQUEST_BODY_TIMEOUT_SECONDS for the whole
    body: a slow trickle of bytes does not extend it.

    Raises:
        InvalidBody: it is larger, or its framing is malformed.
        RequestBodyTimeout: it did not end in time (408, RFC 9110 section 15.5.9). So do broken chunks, which aiohttp's
            C parser does not report to the reader of a body.
    """
    if request.content_length is not None and request.content_length > max_bytes:
        raise _too_large(max_bytes)
    timeout_seconds = request.app[HTTP].request_body_timeout_seconds
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_seconds):
            await send_continue(request)
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError as error:
        raise RequestBodyTimeout(f"The body did not arrive within {timeout_seconds:g} s.") from error
    except FRAMING_ERRORS as error:
        raise InvalidBody("The body's framing is malformed.") from error
    return bytes(body)


def _too_large(max_bytes: int) -> InvalidBody:
    return InvalidBody(f"The body is larger than {max_bytes} bytes.")
