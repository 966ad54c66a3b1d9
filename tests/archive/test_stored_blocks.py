"""Deflate stored blocks, read back by zlib."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.archive import stored_blocks
from service.archive.stored_blocks import FINAL_BLOCK, MAX_BLOCK_BYTES

BLOCK_HEADER_BYTES = 5


def _inflate(stream: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(stream)
    assert inflater.eof
    assert not inflater.unused_data
    return data


@given(st.lists(st.binary(max_size=10), max_size=6))
def test_blocks_and_final_block_are_one_deflate_stream(chunks: list[bytes]) -> None:
    """Any chunks, also none and empty ones, can be read back until the final block ends the stream."""
    blocks = b"".join(part for chunk in chunks for part in stored_blocks.encode(chunk))

    assert _inflate(blocks + FINAL_BLOCK) == b"".join(chunks)


@pytest.mark.parametrize("size", [1, 65_534, 65_535, 65_536, 2 * 65_535, 2 * 65_535 + 1, 256 * 1024])
def test_encoded_chunk_is_complete_at_once(size: int) -> None:
    """All of a chunk can be inflated before the next one comes. Each 65,535 bytes cost 5 bytes."""
    chunk = b"image" * (size // 5) + b"image"[: size % 5]
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    for _ in range(2):
        sent = b"".join(stored_blocks.encode(chunk))
        assert inflater.decompress(sent) == chunk
        assert len(sent) == size + BLOCK_HEADER_BYTES * -(-size // MAX_BLOCK_BYTES)
    assert not inflater.eof


@pytest.mark.parametrize("size", [1, MAX_BLOCK_BYTES, 3 * MAX_BLOCK_BYTES + 7])
def test_encode_copies_no_data(size: int) -> None:
    """The data of every block shares the chunk's memory."""
    chunk = bytes(size)
    parts = stored_blocks.encode(chunk)

    assert all((part.obj if isinstance(part, memoryview) else part) is chunk for part in parts[1::2])


def test_empty_chunk_gives_no_block() -> None:
    """An empty chunk adds nothing to the stream."""
    assert stored_blocks.encode(b"") == ()
