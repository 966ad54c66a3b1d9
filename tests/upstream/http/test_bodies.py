"""Bounded reads of response bodies."""

from collections.abc import Awaitable, Callable

import pytest

from service.upstream.http.bodies import BodyTooLarge, read_bounded


def reader_of(*chunks: bytes) -> Callable[[], Awaitable[bytes]]:
    """Return a function that reads the chunks, and then the end."""
    remaining = [*chunks, b""]

    async def read() -> bytes:
        return remaining.pop(0)

    return read


@pytest.mark.parametrize("chunks", [(), (b"12345",), (b"12", b"345")], ids=["empty", "one_chunk", "two_chunks"])
async def test_body_up_to_the_limit_is_returned_whole(chunks: tuple[bytes, ...]) -> None:
    """A body of exactly the limit is not too large."""
    assert await read_bounded(reader_of(*chunks), max_bytes=5) == b"".join(chunks)


async def test_body_beyond_the_limit_is_rejected_at_once() -> None:
    """Reading stops with the first chunk beyond the limit."""
    read = reader_of(b"12", b"3456", b"789")
    with pytest.raises(BodyTooLarge):
        await read_bounded(read, max_bytes=5)
    assert await read() == b"789"
