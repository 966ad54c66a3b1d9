"""Image bodies: held in memory, or generated while they are read, for sizes of gigabytes.

The rule of this file: a body can be read from any offset, any number of times, always with the same bytes.
"""

import hashlib
import random
import zlib
from collections.abc import Iterator
from typing import Protocol

# One write to a socket; large enough that gigabytes cost few loop turns, small enough to stay in cache.
CHUNK_BYTES = 256 * 1024
# The repeated block of a generated body. Not a divisor of CHUNK_BYTES, so that a client which mixes up
# offsets by a whole chunk gets other bytes than it should.
BLOCK_BYTES = 1_000_003
# SOI, APP0 and the header of a scan (ITU-T T.81 B.2.3): what follows is scan data.
_JPEG_START = bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffda0008010100003f00")
_JPEG_END = bytes.fromhex("ffd9")
# Long enough for the magic bytes of every format: a changed body is still recognized as an image.
_MAGIC_BYTES = 32
# Neither makes an FF, which would start a marker in scan data.
_NO_MARKER = bytes(min(value, 0xFE) for value in range(256))
_FLIP = bytes(min(value ^ 0x55, 0xFE) for value in range(256))


class Body(Protocol):
    """Bytes of a known number, readable from any offset."""

    @property
    def size(self) -> int:
        """The number of bytes."""
        ...

    @property
    def etag(self) -> str:
        """The strong entity tag, with its quotes."""
        ...

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` up to ``stop``."""
        ...


def chunks(body: Body, start: int, stop: int, *, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield the bytes from ``start`` up to ``stop`` in chunks of at most ``size``."""
    for offset in range(start, stop, size):
        yield body.read(offset, min(offset + size, stop))


def crc32_of(body: Body) -> int:
    """Return the CRC-32 of the whole body, without holding it."""
    crc = 0
    for chunk in chunks(body, 0, body.size):
        crc = zlib.crc32(chunk, crc)
    return crc


class BytesBody:
    """A body held in memory; its entity tag is the MD5 of its content, as S3 gives it."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)
        self.etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` up to ``stop``."""
        return self.content[start:stop]


class GeneratedBody:
    """A body of any size, never held as a whole: pseudo-random bytes between the start and the end of a JPEG."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.etag = f'"{hashlib.md5(f"{seed}-{size}".encode(), usedforsecurity=False).hexdigest()}"'
        # Twice the block, so that any slice shorter than a block is one slice.
        self._block = random.Random(seed).randbytes(min(BLOCK_BYTES, size)).translate(_NO_MARKER) * 2

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` up to ``stop``, at most one block's length of them."""
        stop = min(stop, self.size)
        phase = start % (len(self._block) // 2 or 1)
        chunk = self._block[phase : phase + stop - start]
        if start < len(_JPEG_START):
            chunk = (_JPEG_START[start:stop] + chunk[len(_JPEG_START) - start :])[: stop - start]
        return _ended(chunk, stop, self.size)


def _ended(chunk: bytes, stop: int, size: int) -> bytes:
    """Overwrite the last bytes of a chunk that reaches the end of the body with JPEG's end marker."""
    overlap = stop - (size - len(_JPEG_END))
    if overlap <= 0:
        return chunk
    keep = max(0, len(chunk) - overlap)
    return chunk[:keep] + _JPEG_END[:overlap][-(len(chunk) - keep) :]


class ChangedBody:
    """Another JPEG's content, altered between its beginning and its end; ``extra`` bytes longer."""

    def __init__(self, original: Body, *, extra: int = 0) -> None:
        self._original = original
        start = original.read(0, min(original.size, _MAGIC_BYTES))
        # Altered segments could not be parsed: an altered JPEG gets the shortest valid start.
        self._start = _JPEG_START[: len(start)] if start.startswith(_JPEG_START[:3]) else start
        self.size = original.size + extra
        self.etag = f'"{hashlib.md5(original.etag.encode(), usedforsecurity=False).hexdigest()}"'

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` up to ``stop``."""
        stop = min(stop, self.size)
        chunk = self._original.read(start, min(stop, self._original.size)) if start < self._original.size else b""
        plain = self._start[start:stop]
        altered = plain + chunk[len(plain) :].translate(_FLIP)
        return _ended(altered.ljust(stop - start, b"+"), stop, self.size)


class PaddedBody:
    """A body with zero bytes behind it, as encoders pad their files."""

    def __init__(self, original: Body, padding_bytes: int) -> None:
        self._original = original
        self.size = original.size + padding_bytes
        self.etag = original.etag

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` up to ``stop``."""
        stop = min(stop, self.size)
        end = min(stop, self._original.size)
        return (self._original.read(start, end) if start < end else b"").ljust(stop - start, b"\0")


class NoiseBody:
    """A body of the same size as another, but not an image."""

    def __init__(self, original: Body) -> None:
        self.size = original.size
        self.etag = original.etag

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` up to ``stop``."""
        return b"not an image. "[start % 14 :].ljust(min(stop, self.size) - start, b".")[: min(stop, self.size) - start]
