"""Reads response bodies whole, within a limit."""

from collections.abc import Awaitable, Callable


class BodyTooLarge(Exception):
    """A response body is larger than its limit."""


async def read_bounded(read: Callable[[], Awaitable[bytes]], *, max_bytes: int) -> bytes:
    """Return a whole body. ``read`` returns its next bytes, and ``b""`` at its end.

    Raises:
        BodyTooLarge: it has more than ``max_bytes``; at most one read beyond them has been buffered.
    """
    body = bytearray()
    while chunk := await read():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLarge(f"more than {max_bytes} bytes")
    return bytes(body)
