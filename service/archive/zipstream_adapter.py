"""Adapter for zipstream-ng: local headers, data descriptors and the central directory of one archive.

The only file that knows zipstream-ng, which has no types; it uses its public interface alone. zipstream-ng is driven
without a thread, and never sees an entry's data: at the entry's end it gets one empty chunk that claims the length of
what was sent. It computes the offsets and chooses Zip64 fields from that.

To zipstream-ng every entry is a stored one with the CRC-32 of nothing and mode 0600. The CRC-32, the compression
method, the uncompressed size and the mode are patched in each record that it returns. So the CRC-32 can come from isal,
which is ten times as fast as zlib: zlib's took a fifth of the CPU time of an archive of large images.
"""

import re
import struct
from collections.abc import Generator, Iterable, Iterator
from typing import Final, Self

from zipstream import ZIP_STORED, ZipStream

from service.model import Entry

# Above this zipstream-ng, like Python's zipfile, gives an entry Zip64 fields: some readers take 4-byte sizes as signed.
LARGEST_WITHOUT_ZIP64: Final = 2**31 - 1

# Compression methods (APPNOTE 4.4.5).
_METHOD_STORED: Final = 0
_METHOD_DEFLATED: Final = 8

# Offsets in a local header (APPNOTE 4.3.7).
_HEADER_METHOD: Final = 8
_HEADER_EXTRA_LENGTH: Final = 28

# Data descriptors (APPNOTE 4.3.9) by length, plain and Zip64: signature, CRC-32, compressed size, uncompressed size.
_DESCRIPTORS: Final = {form.size: form for form in (struct.Struct("<4sLLL"), struct.Struct("<4sLQQ"))}

# Offsets in a central directory record (APPNOTE 4.3.12).
_RECORD_SIGNATURE: Final = b"PK\x01\x02"
_RECORD_SYSTEM: Final = 5  # upper byte of "version made by" (APPNOTE 4.4.2): the system of the file attributes
_RECORD_METHOD: Final = 10
_RECORD_CRC32: Final = 16
_RECORD_SIZE: Final = 24
_RECORD_NAME_LENGTH: Final = 28
_RECORD_ATTRIBUTES: Final = 38
_RECORD_NAME: Final = 46
# This size refers to the Zip64 extra field behind the name, where the uncompressed size comes first (APPNOTE 4.5.3).
_SIZE_IN_ZIP64: Final = 0xFFFF_FFFF
_ZIP64_SIZE: Final = 4

_UNIX: Final = 3
# A regular file, rw-r--r--. Unix programs keep the mode in the upper 16 bits (APPNOTE 4.4.15). With zipstream-ng's 0600
# and no file type, unzip and bsdtar extract files that no other user can read, and fuse-zip fails with EIO.
_ATTRIBUTES: Final = 0o100644 << 16

# Names that zipstream-ng stores unchanged: it drops, replaces or encodes nothing in them.
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ ().-]{0,200}")


class _EmptyChunk(bytes):
    """A chunk without bytes that claims a length."""

    _size: int

    def __new__(cls, size: int) -> Self:
        chunk = super().__new__(cls)
        chunk._size = size
        return chunk

    def __len__(self) -> int:
        return self._size


class EntryRecord:
    """The framing of one open entry. End it with ``descriptor``, then either ``commit`` or ``discard``."""

    def __init__(self, stream: ZipStream, name: str, size: int, method: int) -> None:
        # The list is filled at the entry's end; zipstream-ng reads it no earlier.
        self._chunks: list[bytes] = []
        # zipstream-ng logs a warning if the size differs in the end. It decides only about Zip64 here.
        stream.add(iter(self._chunks), name, size=size)
        self._framing: Generator[bytes, None, bool] = stream.file()
        header = bytearray(next(self._framing))
        _patch_method(header, _HEADER_METHOD, method)
        self.header = bytes(header)
        # The only extra field that zipstream-ng makes is the Zip64 field.
        self.has_zip64 = struct.unpack_from("<H", header, _HEADER_EXTRA_LENGTH) != (0,)

    def descriptor(self, crc32: int, compressed_size: int, size: int) -> bytes:
        """Return the data descriptor that follows the entry's data."""
        if compressed_size:
            self._chunks.append(_EmptyChunk(compressed_size))
            next(self._framing)  # the chunk itself, which is not sent
        descriptor = next(self._framing)
        form = _DESCRIPTORS[len(descriptor)]
        signature, _, *sizes = form.unpack(descriptor)
        if sizes != [compressed_size, compressed_size]:
            raise AssertionError(f"zipstream-ng states sizes {sizes}, not {compressed_size}")
        return form.pack(signature, crc32, compressed_size, size)

    def commit(self) -> None:
        """Add the entry to the central directory."""
        next(self._framing, None)  # yields nothing: zipstream-ng lists an entry once its generator has ended

    def discard(self) -> None:
        """Leave the entry out of the central directory. Its bytes count in later offsets."""
        self._framing.close()


class ZipStreamAdapter:
    """The records of one archive. One entry is open at a time."""

    def __init__(self, *, deflated: bool) -> None:
        self._stream = ZipStream(compress_type=ZIP_STORED)
        self._method = _METHOD_DEFLATED if deflated else _METHOD_STORED

    def open_entry(self, name: str, size: int) -> EntryRecord:
        """Start an entry with Zip64 fields if ``size`` needs them.

        A ``name`` for which ``name_problem`` returns a text is stored differently, or leaves the archive unusable.
        """
        return EntryRecord(self._stream, name, size, self._method)

    def directory(self, entries: Iterable[Entry]) -> Iterator[bytes]:
        """Yield the central directory record of each committed entry, then the end records.

        ``entries`` are the committed entries in their order.
        """
        records: Iterator[bytes] = self._stream.footer()
        for entry in entries:
            yield self._directory_record(next(records), entry)
        yield from records

    def _directory_record(self, record: bytes, entry: Entry) -> bytes:
        if not record.startswith(_RECORD_SIGNATURE):
            raise AssertionError("zipstream-ng's directory has fewer records than entries")
        patched = bytearray(record)
        patched[_RECORD_SYSTEM] = _UNIX
        _patch_method(patched, _RECORD_METHOD, self._method)
        struct.pack_into("<L", patched, _RECORD_CRC32, entry.crc32)
        struct.pack_into("<L", patched, _RECORD_ATTRIBUTES, _ATTRIBUTES)
        if struct.unpack_from("<L", patched, _RECORD_SIZE) == (_SIZE_IN_ZIP64,):
            (name_length,) = struct.unpack_from("<H", patched, _RECORD_NAME_LENGTH)
            struct.pack_into("<Q", patched, _RECORD_NAME + name_length + _ZIP64_SIZE, entry.size)
        else:
            struct.pack_into("<L", patched, _RECORD_SIZE, entry.size)
        return bytes(patched)


def name_problem(name: str) -> str | None:
    """Explain why zipstream-ng would not store a name as given; return None if it would.

    A throw-away archive tries the name, so that a bad one leaves no trace in the real archive.
    """
    if _PLAIN_NAME.fullmatch(name):
        return None  # the trial takes as long as all other work on a small entry
    trial = ZipStream()
    try:
        trial.add(iter(()), name)
        stored_name = trial.info_list()[0]["name"]
        next(trial.file())  # encodes the name and packs its length into 16 bits
    except (ValueError, struct.error) as error:
        return f"{name[:100]!r} cannot be an entry's name: {error}"
    return None if stored_name == name else f"{name[:100]!r} would become {stored_name!r}"


def _patch_method(record: bytearray, offset: int, method: int) -> None:
    if struct.unpack_from("<H", record, offset) != (_METHOD_STORED,):
        raise AssertionError("zipstream-ng's entry is not a stored one")
    struct.pack_into("<H", record, offset, method)
