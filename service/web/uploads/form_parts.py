"""Reads a multipart upload part by part: fields first, then each file into a temporary file of bounded size.

Nothing is held whole in memory; of a request, one file at a time is on disk. Storage takes a file only with its length
(S3 refuses chunked bodies), and a part of a form does not say how long it is (RFC 7578 section 4.8): hence the file.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TypeVar

from aiohttp import BodyPartReader, hdrs, web
from aiohttp.http import HttpProcessingError

from service.archive.naming import visible
from service.errors import InvalidBody, RequestBodyTimeout, UnsupportedMediaType
from service.upstream.image_formats import PHOTO_SNIFF_BYTES, is_photo
from service.web.http.expect_continue import send_continue

FILES, ORDER_NAME = "files", "name"
CHUNK_BYTES = 64 * 1024
# The fields are short words.
MAX_FIELD_BYTES = 1024
MAX_FIELDS = 32
MAX_NAME_CHARACTERS = 200

# What aiohttp's reader raises at a form that is not well-formed.
_MALFORMED = (ValueError, AssertionError, RuntimeError, HttpProcessingError)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Spooled:
    """A file that has arrived: its cleaned name, its size in bytes, and where it is unless it was refused."""

    name: str
    size: int
    refusal: str | None
    path: Path


class UploadParts:
    """The parts of one request. Read ``fields`` first, then ``files``."""

    def __init__(self, request: web.Request, *, max_file_bytes: int, stall_seconds: float) -> None:
        self._request = request
        self._max_file_bytes = max_file_bytes
        self._stall_seconds = stall_seconds

    async def parts(self) -> AsyncIterator[BodyPartReader]:
        """Yield the parts as they come.

        Raises:
            UnsupportedMediaType, InvalidBody, RequestBodyTimeout
        """
        if self._request.content_type != "multipart/form-data" or hdrs.CONTENT_ENCODING in self._request.headers:
            raise UnsupportedMediaType(
                "Send multipart/form-data, not compressed, with the photos in the field 'files'."
            )
        await send_continue(self._request)
        reader = await self._in_time(self._request.multipart())
        while (part := await self._in_time(reader.next())) is not None:
            if not isinstance(part, BodyPartReader):
                raise InvalidBody("A multipart body inside another is not taken.")
            yield part

    async def text(self, part: BodyPartReader) -> str:
        """Return a field's value.

        Raises:
            InvalidBody, RequestBodyTimeout
        """
        value = b""
        while chunk := await self._in_time(part.read_chunk(CHUNK_BYTES)):
            value += chunk
            if len(value) > MAX_FIELD_BYTES:
                raise InvalidBody(f"The field {part.name!r} is longer than {MAX_FIELD_BYTES} bytes.")
        _check_ended(part)
        return value.decode("utf-8", "replace").strip()

    @asynccontextmanager
    async def spooled(self, part: BodyPartReader, *, refusal: str | None = None) -> AsyncIterator[Spooled]:
        """Write a file to disk, for use inside the context; read and discard one that is refused.

        Only the boundary ends a file (RFC 2046 section 5.1.1). One that ends without it is ``incomplete``: it is
        yielded as refused, so that it can be listed, and the error is raised when the context is left.

        Raises:
            InvalidBody, RequestBodyTimeout
        """
        with ExitStack() as stack:
            size, head, path = 0, b"", Path()
            file: IO[bytes] | None = None
            broken: InvalidBody | RequestBodyTimeout | None = None
            try:
                file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="upload-"))
                path = Path(file.name)
            except OSError:
                refusal = refusal or "no_room"
            try:
                while chunk := await self._in_time(part.read_chunk(CHUNK_BYTES)):
                    size += len(chunk)
                    head = head if len(head) >= PHOTO_SNIFF_BYTES else (head + chunk)[:PHOTO_SNIFF_BYTES]
                    if size > self._max_file_bytes:
                        refusal = refusal or "too_large"
                    if refusal is None and file is not None and not await asyncio.to_thread(_kept, file, chunk):
                        refusal = "no_room"
                _check_ended(part)
            except (InvalidBody, RequestBodyTimeout) as error:
                broken, refusal = error, refusal or "incomplete"
            if refusal is None:
                refusal = "empty" if not size else None if is_photo(head) else "not_a_photo"
            if refusal is None and file is not None and not await asyncio.to_thread(_kept, file):
                refusal = "no_room"
            yield Spooled(clean_name(part.filename or ""), size, refusal, path)
            if broken is not None:
                raise broken

    async def _in_time(self, wait: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout(self._stall_seconds):
                return await wait
        except TimeoutError as error:
            raise RequestBodyTimeout(f"Nothing came for {self._stall_seconds:g} s.") from error
        except _MALFORMED as error:
            raise InvalidBody("The body is not well-formed multipart/form-data.") from error


def _check_ended(part: BodyPartReader) -> None:
    """Check that a part which has no more bytes was ended by its boundary.

    Raises:
        InvalidBody
    """
    if not part.at_eof():
        raise InvalidBody("The form ends inside a part, before the boundary that ends it.")


def _kept(file: IO[bytes], chunk: bytes = b"") -> bool:
    """Write a chunk, or what still waits in the buffer if there is none; return whether the disk took it."""
    try:
        if chunk:
            file.write(chunk)
        else:
            file.flush()
    except OSError:
        with suppress(OSError):  # closing writes once more, and must not fail later on
            file.close()
        return False
    return True


def clean_name(name: str) -> str:
    """Return an uploader's file name without folders, control characters and excess length."""
    base = PurePosixPath(PureWindowsPath(name).name).name
    return visible(base)[-MAX_NAME_CHARACTERS:].strip() or "photo"
