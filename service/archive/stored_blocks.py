"""DEFLATE stored blocks: a deflate stream that holds its data uncompressed (RFC 1951 section 3.2.4).

Such a stream shows where it ends, which plain stored data in a ZIP entry does not. zlib's own stored blocks would cost
copies, and come up to 64 KiB late; these are complete at once, and their data is never copied.
"""

import struct
from typing import Final

# Block type and padding to the byte boundary, length, one's complement of the length; the data follows.
_HEADER: Final = struct.Struct("<BHH")
MAX_BLOCK_BYTES: Final = 0xFFFF
_FULL_BLOCK_HEADER: Final = _HEADER.pack(0, MAX_BLOCK_BYTES, 0)

# An empty block with BFINAL set. It ends the stream.
FINAL_BLOCK: Final = _HEADER.pack(1, 0, 0xFFFF)


def encode(chunk: bytes) -> tuple[bytes | memoryview, ...]:
    """Encode a chunk as complete non-final blocks, each as its header and a view of its data.

    An empty chunk gives no block. The stream goes on with more blocks or ends with ``FINAL_BLOCK``.
    """
    size = len(chunk)
    if size <= MAX_BLOCK_BYTES:
        return (_header(size), chunk) if chunk else ()
    parts: list[bytes | memoryview] = []
    view = memoryview(chunk)
    rest = size % MAX_BLOCK_BYTES
    for start in range(0, size - rest, MAX_BLOCK_BYTES):
        parts += (_FULL_BLOCK_HEADER, view[start : start + MAX_BLOCK_BYTES])
    if rest:
        parts += (_header(rest), view[-rest:])
    return tuple(parts)


def _header(size: int) -> bytes:
    return _HEADER.pack(0, size, size ^ 0xFFFF)
