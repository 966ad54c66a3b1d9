"""Multipart forms (RFC 7578), read part by part: fields first, then each file into a temporary file of bounded size.

No file is held in memory, and at most one per request is on disk. Storage needs the length of a file in advance (S3
rejects chunked bodies), and a part does not state it (RFC 7578 section 4.8): hence the temporary file.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TypeVar

from aiohttp import BodyPartReader, hdrs, web

from service.archive.naming import visible
from service.errors import InvalidBody, RequestBodyTimeout, UnsupportedMediaType
from service.upstream.image_formats import PHOTO_SNIFF_BYTES, is_photo
from service.web.http.bodies import FRAMING_ERRORS
from service.web.http.expect_continue import send_continue

FILES, ORDER_NAME = "files", "name"
CHUNK_BYTES = 64 * 1024
# The fields are short words.
MAX_FIELD_BYTES = 1024
MAX_FIELDS = 32
MAX_NAME_CHARACTERS = 200

# What aiohttp's reader raises for a malformed form.
_MALFORMED = (ValueError, AssertionError, RuntimeError, *FRAMING_ERRORS)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """An uploaded file: its cleaned name, its size in bytes, and its path unless it has a ``rejection`` reason."""

    name: str
    size: int
    rejection: str | None
    path: Path


class FormParts:
    """Reads the form of one request. ``idle_timeout_seconds`` bounds each wait for more bytes."""

    def __init__(self, request: web.Request, *, max_file_bytes: int, idle_timeout_seconds: float) -> None:
        self._request = request
        self._max_file_bytes = max_file_bytes
        self._idle_timeout_seconds = idle_timeout_seconds

    async def parts(self) -> AsyncIterator[BodyPartReader]:
        """Yield the parts as they arrive.

        Raises:
            UnsupportedMediaType, InvalidBody, RequestBodyTimeout
        """
        if self._request.content_type != "multipart/form-data" or hdrs.CONTENT_ENCODING in self._request.headers:
            raise UnsupportedMediaType(
                "Send multipart/form-data, not compressed, with the photos in the field 'files'."
            )
        await send_continue(self._request)
        reader = await self._with_timeout(self._request.multipart())
        while (part := await self._with_timeout(reader.next())) is not None:
            if not isinstance(part, BodyPartReader):
                raise InvalidBody("Nested multipart bodies are not supported.")
            yield part

    async def read_text(self, part: BodyPartReader) -> str:
        """Return a field's value.

        Raises:
            InvalidBody, RequestBodyTimeout
        """
        value = b""
        while chunk := await self._with_timeout(part.read_chunk(CHUNK_BYTES)):
            value += chunk
            if len(value) > MAX_FIELD_BYTES:
                raise InvalidBody(f"The field {part.name!r} is longer than {MAX_FIELD_BYTES} bytes.")
        _check_ended(part)
        return value.decode("utf-8", "replace").strip()

    @asynccontextmanager
    async def spool(self, part: BodyPartReader, *, rejection: str | None = None) -> AsyncIterator[SpooledFile]:
        """Write a file to disk, for use inside the context; read and discard a rejected one.

        Only the boundary ends a file (RFC 2046 section 5.1.1). One that ends without it is ``incomplete``: it is
        yielded as rejected, so that it can be listed, and the error is raised when the context is left.

        Raises:
            InvalidBody, RequestBodyTimeout
        """
        with ExitStack() as stack:
            size, prefix, path = 0, b"", Path()
            file: IO[bytes] | None = None
            form_error: InvalidBody | RequestBodyTimeout | None = None
            try:
                file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="upload-"))
                path = Path(file.name)
            except OSError:
                rejection = rejection or "no_room"
            try:
                while chunk := await self._with_timeout(part.read_chunk(CHUNK_BYTES)):
                    size += len(chunk)
                    prefix = prefix if len(prefix) >= PHOTO_SNIFF_BYTES else (prefix + chunk)[:PHOTO_SNIFF_BYTES]
                    if size > self._max_file_bytes:
                        rejection = rejection or "too_large"
                    if rejection is None and file is not None and not await asyncio.to_thread(_write, file, chunk):
                        rejection = "no_room"
                _check_ended(part)
            except (InvalidBody, RequestBodyTimeout) as error:
                form_error, rejection = error, rejection or "incomplete"
            if rejection is None:
                rejection = "empty" if not size else None if is_photo(prefix) else "not_a_photo"
            if rejection is None and file is not None and not await asyncio.to_thread(_write, file):
                rejection = "no_room"
            yield SpooledFile(clean_name(part.filename or ""), size, rejection, path)
            if form_error is not None:
                raise form_error

    async def _with_timeout(self, operation: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout(self._idle_timeout_seconds):
                return await operation
        except TimeoutError as error:
            raise RequestBodyTimeout(f"Nothing arrived for {self._idle_timeout_seconds:g} s.") from error
        except _MALFORMED as error:
            raise InvalidBody("The body is not well-formed multipart/form-data.") from error


def _check_ended(part: BodyPartReader) -> None:
    """Check that a boundary ended a part which has no more bytes.

    Raises:
        InvalidBody
    """
    if not part.at_eof():
        raise InvalidBody("The form ends inside a part, before the boundary that ends it.")


def _write(file: IO[bytes], chunk: bytes = b"") -> bool:
    """Write a chunk, or flush the buffer if there is none; return whether the disk accepted it."""
    try:
        if chunk:
            file.write(chunk)
        else:
            file.flush()
    except OSError:
        with suppress(OSError):  # closing flushes once more, and must not fail later
            file.close()
        return False
    return True


def clean_name(name: str) -> str:
    """Return an uploaded file's name without folders, control characters and excess length."""
    base = PurePosixPath(PureWindowsPath(name).name).name
    return visible(base)[-MAX_NAME_CHARACTERS:].strip() or "photo"
