"""ZIP framing without I/O: names and chunks go in, the bytes to send come out.

The only file that knows zipstream-ng, which has no types; nothing private of it is touched. It is driven without
a thread: a generator is our "file". It never sees the data: at an entry's end it is given one stand-in with the
length of what was sent for the data and the data's CRC-32, and makes the descriptor and the directory record from
that. The checksum is then isal's, ten times as fast as zlib's, which zipstream-ng would use: that was a fifth of the
CPU time of an archive of large images.

To zipstream-ng every entry is a stored one that its owner alone may read. In the streamable layout what is sent are
deflate blocks of our own making, and the fields that tell the two apart, method and size, are put right in each record
that it hands out. zlib's blocks would cost copies, and come up to 64 KiB late. The mode is put right in both layouts.
"""

import re
import struct
from collections.abc import Generator, Iterator, Sequence
from enum import Enum, StrEnum
from typing import Final, Self

from isal import isal_zlib
from zipstream import ZIP_STORED, ZipStream

from service.model import Entry, Reason

# Above this zipstream-ng, like Python's zipfile, gives an entry Zip64 fields: readers exist that take 4-byte
# sizes as signed.
LARGEST_WITHOUT_ZIP64: Final = 2**31 - 1
# The central directory comes record by record, about 80 bytes each; sent singly they would cost a write each.
_TAIL_PIECE_BYTES: Final = 64 * 1024

# Data descriptors (APPNOTE 4.3.9): signature, CRC-32, compressed size and size, by length: plain and Zip64.
_DESCRIPTORS: Final = {form.size: form for form in (struct.Struct("<4sLLL"), struct.Struct("<4sLQQ"))}

# Compression methods (APPNOTE 4.4.5).
_METHOD_STORED: Final = 0
_METHOD_DEFLATED: Final = 8
# Where the local header (APPNOTE 4.3.7) has its method, the length of the name and the length of the extra field.
_HEADER_METHOD: Final = 8
_HEADER_LENGTHS: Final = 26
# Where a directory record (APPNOTE 4.3.12) has its signature and method, its size, the length of its name, its name.
_RECORD_SIGNATURE: Final = b"PK\x01\x02"
_RECORD_METHOD: Final = 10
_RECORD_SIZE: Final = 24
_RECORD_NAME_LENGTH: Final = 28
_RECORD_NAME: Final = 46
# Where it has the system that its attributes are of (the upper byte of "version made by", APPNOTE 4.4.2), and these.
_RECORD_SYSTEM: Final = 5
_RECORD_ATTRIBUTES: Final = 38
_UNIX: Final = 3
# A regular file, rw-r--r--; Unix programs keep the mode in the upper 16 bits (APPNOTE 4.4.15). zipstream-ng would write
# 0600 without a type: unzip and bsdtar then extract files that no other user can read, and fuse-zip fails with EIO.
_MODE: Final = 0o100644
# The size that says to look into the Zip64 field behind the name, where it comes first (APPNOTE 4.5.3).
_SIZE_IN_ZIP64: Final = 0xFFFF_FFFF
_ZIP64_SIZE: Final = 4

# Deflate's stored blocks (RFC 1951 section 3.2.4): type and padding to the byte, length, its complement; the data.
_BLOCK_HEADER: Final = struct.Struct("<BHH")
_LARGEST_BLOCK: Final = 0xFFFF
_FULL_BLOCK: Final = _BLOCK_HEADER.pack(0, _LARGEST_BLOCK, 0)
_LAST_BLOCK: Final = _BLOCK_HEADER.pack(1, 0, 0xFFFF)

# Names that zipstream-ng takes as they are: nothing in them that it would drop, replace or encode.
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ ().-]{0,200}")

# What is to be sent, in parts that lie where they are: whoever sends them joins them once, or not at all.
Parts = tuple[bytes | memoryview, ...]

# The generator polynomial of CRC-32, reflected (ISO 3309; APPNOTE 4.4.7).
_POLYNOMIAL: Final = 0xEDB88320
_ALL_ONES: Final = 0xFFFFFFFF


class _StandIn(bytes):
    """Four bytes that have the CRC-32 of some data, and claim to be as long as the data."""

    _size: int

    def __new__(cls, size: int, crc32: int) -> Self:
        stand_in = super().__new__(cls, _bytes_with_crc32(crc32))
        stand_in._size = size
        return stand_in

    def __len__(self) -> int:
        return self._size


class Layout(StrEnum):
    """How entries lie in the archive, compressed in neither.

    ``stored``: as they are, so that not every program which unpacks a pipe can tell where one ends. ``streamable``: in
    deflate blocks, which show their own end.
    """

    STORED = "stored"
    STREAMABLE = "streamable"


class ArchiveStateError(RuntimeError):
    """A call out of order, such as a second entry opened inside the first; the writer is as it was before."""


class EntryNameError(ValueError):
    """A name which would not stand in the archive as given, or stands there already; nothing was changed."""


class EntrySizeMismatch(Exception):
    """An entry's bytes do not add up to the size promised for it; it is still open and wants to be rolled back."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _State(Enum):
    IDLE = "between entries"
    OPEN = "inside an entry"
    FINISHED = "finished"


class ArchiveWriter:
    """Turns entries into the bytes of one ZIP archive: open, write …, close or roll back, and finish at the end.

    Every method returns what to send next, ``write`` in parts; it must reach the client in that order. What was sent
    of an entry that is rolled back stays in the stream, but no central directory record points at it, so unzip programs
    do not see it, and its name is free again. One exception is known: 7-Zip shows rolled-back entries at the very
    beginning of an archive as files, so the first entry should be the one that is least likely to break.

    Nothing is compressed, in either layout. zipstream-ng writes the size behind the data, so what is promised at
    opening only decides about Zip64. Without a promise it would always choose Zip64, and Safari keeps only the
    first file of an archive that starts so; an entry of unknown size is therefore announced as small, and broken
    off with ``EntrySizeMismatch`` before it outgrows that.
    """

    def __init__(self, layout: Layout = Layout.STORED) -> None:
        self._zip = ZipStream(compress_type=ZIP_STORED)
        self._in_blocks = layout is Layout.STREAMABLE
        # What must follow the last byte of an entry, whole or rolled back.
        self._end_of_data = _LAST_BLOCK if self._in_blocks else b""
        self._state = _State.IDLE
        self._bytes_out = 0
        self._entries: list[Entry] = []
        self._names: set[str] = set()
        self._owed = b""  # the descriptors of rolled-back entries
        # Of the open entry:
        self._name = ""
        self._promised: int | None = None
        self._zip64 = False
        self._written = 0
        self._packed = 0  # what was sent for it
        self._crc32 = 0
        self._framing: Generator[bytes, None, bool] | None = None

    @property
    def bytes_out(self) -> int:
        """Bytes handed out so far: framing, data, and what was rolled back."""
        return self._bytes_out

    @property
    def entries(self) -> Sequence[Entry]:
        """The entries closed so far, in the order of the central directory."""
        return self._entries

    def open_entry(self, name: str, size: int | None = None) -> bytes:
        """Begin an entry and return its local header; ``size`` is a promise, if known."""
        self._require_idle()
        if name in self._names:
            raise EntryNameError(f"the archive already has an entry {name!r}")
        _check_name(name)
        if size is not None and size < 0:
            raise ValueError(f"an entry cannot have {size} bytes")
        # zipstream-ng will log that the size is another if it is unknown or in blocks; that means nothing here.
        self._zip.add(self._stand_in(), name, size=size or 0)
        self._name, self._promised, self._written, self._packed, self._crc32 = name, size, 0, 0, 0
        self._framing = self._zip.file()
        self._state = _State.OPEN
        header = next(self._framing)
        self._zip64 = _has_extra_field(header)
        return self._sent(self._settled() + (_deflated_header(header) if self._in_blocks else header))

    def write(self, chunk: bytes) -> Parts:
        """Return what to send for ``chunk``, all of it: the very same object, or whole blocks made of it.

        Raises:
            EntrySizeMismatch: the chunk is more than the promise leaves room for; it was not taken.
        """
        self._open_framing()
        if self._promised is not None and self._written + len(chunk) > self._promised:
            raise EntrySizeMismatch(Reason.TOO_LONG, f"{self._name!r} has more than {self._promised} bytes")
        parts = _blocks(chunk) if self._in_blocks else (chunk,)
        size = sum(map(len, parts))
        packed = self._packed + size
        if not self._zip64 and packed + len(self._end_of_data) > LARGEST_WITHOUT_ZIP64:
            raise EntrySizeMismatch(Reason.TOO_LONG, f"{self._name!r} outgrows {LARGEST_WITHOUT_ZIP64} bytes")
        self._written += len(chunk)
        self._packed = packed
        self._crc32 = isal_zlib.crc32(chunk, self._crc32)
        self._bytes_out += size
        return parts

    def close_entry(self) -> tuple[Entry, bytes]:
        """Complete the open entry and return it with the bytes that end it.

        Raises:
            EntrySizeMismatch: fewer bytes were written than promised; the entry stays open.
        """
        framing = self._open_framing()
        if self._promised is not None and self._written != self._promised:
            raise EntrySizeMismatch(Reason.TRUNCATED, f"{self._name!r} has {self._written} bytes, not {self._promised}")
        end = self._end_of_entry(framing)
        entry = Entry(self._name, self._written, self._crc32)
        next(framing, None)  # brings nothing more, but an entry counts only when its generator has ended
        self._entries.append(entry)
        self._names.add(entry.name)
        self._leave_entry()
        return entry, self._sent(end)

    def roll_back(self) -> None:
        """Leave the open entry out of the archive. What was sent of it counts in later offsets all the same.

        It still gets its end, handed out in front of whatever comes next: 7-Zip loses the whole archive if the
        first entry is one without a data descriptor, and readers of streams find the next entry by it.
        """
        framing = self._open_framing()
        self._owed += self._end_of_entry(framing)
        framing.close()
        self._leave_entry()

    def add(self, name: str, data: bytes) -> bytes:
        """Return a whole small entry at once."""
        header = self.open_entry(name, len(data))
        body = self.write(data)
        _, end = self.close_entry()
        return b"".join((header, *body, end))

    def finish(self) -> Iterator[bytes]:
        """End the archive: return its central directory and end records in pieces of bounded size."""
        self._require_idle()
        self._state = _State.FINISHED
        return self._tail()

    def _tail(self) -> Iterator[bytes]:
        piece = bytearray(self._settled())
        for record in self._directory():
            piece += record
            if len(piece) >= _TAIL_PIECE_BYTES:
                yield self._sent(bytes(piece))
                piece.clear()
        if piece:
            yield self._sent(bytes(piece))

    def _directory(self) -> Iterator[bytes]:
        """Yield the directory's records, one for each entry, and the archive's end."""
        records: Iterator[bytes] = self._zip.footer()
        for entry in self._entries:
            record = _readable_record(next(records))
            yield _deflated_record(record, entry.size) if self._in_blocks else bytes(record)
        yield from records

    def _stand_in(self) -> Iterator[bytes]:
        """Yield what stands for the open entry's data; asked for when all of it has been written."""
        if self._packed:
            yield _StandIn(self._packed, self._crc32)

    def _end_of_entry(self, framing: Generator[bytes, None, bool]) -> bytes:
        """Let zipstream-ng account for what was sent; return what ends it, and the data descriptor."""
        self._packed += len(self._end_of_data)
        if self._packed:
            next(framing)  # the stand-in itself, which nobody sends
        descriptor = next(framing)
        form = _DESCRIPTORS[len(descriptor)]
        signature, *described = form.unpack(descriptor)
        if described != [self._crc32, self._packed, self._packed]:
            raise AssertionError(f"zipstream-ng describes {self._name!r} as {described}")
        return self._end_of_data + form.pack(signature, self._crc32, self._packed, self._written)

    def _require_idle(self) -> None:
        if self._state is not _State.IDLE:
            raise ArchiveStateError(f"the archive is not between entries but {self._state.value}")

    def _open_framing(self) -> Generator[bytes, None, bool]:
        if self._framing is None:
            raise ArchiveStateError(f"no entry is open: the archive is {self._state.value}")
        return self._framing

    def _leave_entry(self) -> None:
        self._framing = None
        self._state = _State.IDLE

    def _settled(self) -> bytes:
        owed, self._owed = self._owed, b""
        return owed

    def _sent(self, data: bytes) -> bytes:
        self._bytes_out += len(data)
        return data


def _bytes_with_crc32(crc32: int) -> bytes:
    """Return the four bytes whose CRC-32 is the given one: the register run backwards over 32 bits."""
    register = crc32 ^ _ALL_ONES
    for _ in range(4):
        register = (register << 8 & _ALL_ONES) ^ _BACKWARDS[register >> 24]
    return (register ^ _ALL_ONES).to_bytes(4, "little")


def _byte_backwards(high_byte: int) -> int:
    """Return what running the register backwards over 8 bits makes of its highest byte."""
    register = high_byte << 24
    for _ in range(8):
        high = register >> 31
        register = ((register ^ (_POLYNOMIAL * high)) << 1 & _ALL_ONES) | high
    return register


_BACKWARDS: Final = tuple(map(_byte_backwards, range(256)))


def _check_name(name: str) -> None:
    """Let a throw-away archive try the name, so that a bad one leaves no trace in the real one."""
    if _PLAIN_NAME.fullmatch(name):
        return  # the trial would take as long as all else that is done here for a small image
    trial = ZipStream()
    try:
        trial.add(iter(()), name)
        stands_as = trial.info_list()[0]["name"]
        next(trial.file())  # encodes the name and packs its length into 16 bits
    except (ValueError, struct.error) as error:
        raise EntryNameError(f"{name[:100]!r} cannot be an entry's name: {error}") from error
    if stands_as != name:
        raise EntryNameError(f"{name[:100]!r} would become {stands_as!r}")


def _blocks(chunk: bytes) -> Parts:
    """Return the blocks that hold a chunk as it is, each as its header and its data; more may follow, or the last."""
    size = len(chunk)
    if size <= _LARGEST_BLOCK:
        return (_BLOCK_HEADER.pack(0, size, size ^ 0xFFFF), chunk) if chunk else ()
    parts: list[bytes | memoryview] = []
    view = memoryview(chunk)
    for start in range(0, size - size % _LARGEST_BLOCK, _LARGEST_BLOCK):
        parts += (_FULL_BLOCK, view[start : start + _LARGEST_BLOCK])
    if rest := size % _LARGEST_BLOCK:
        parts += (_BLOCK_HEADER.pack(0, rest, rest ^ 0xFFFF), view[-rest:])
    return tuple(parts)


def _has_extra_field(header: bytes) -> bool:
    """Tell whether a local header of zipstream-ng's has a Zip64 field, the only extra field it makes."""
    _, extra_length = struct.unpack_from("<HH", header, _HEADER_LENGTHS)
    return bool(extra_length)


def _deflated_header(header: bytes) -> bytes:
    """Return the local header of a stored entry as that of a deflated one."""
    return _with_method(bytearray(header), _HEADER_METHOD)


def _readable_record(record: bytes) -> bytearray:
    """Return a copy of a directory record with the mode that extracted files get."""
    if not record.startswith(_RECORD_SIGNATURE):
        raise AssertionError("zipstream-ng's directory has fewer records than entries")
    changed = bytearray(record)
    changed[_RECORD_SYSTEM] = _UNIX
    struct.pack_into("<L", changed, _RECORD_ATTRIBUTES, _MODE << 16)
    return changed


def _deflated_record(record: bytearray, size: int) -> bytes:
    """Change the directory record of a stored entry to that of a deflated one whose data has the given size."""
    if struct.unpack_from("<L", record, _RECORD_SIZE) == (_SIZE_IN_ZIP64,):
        (name_length,) = struct.unpack_from("<H", record, _RECORD_NAME_LENGTH)
        struct.pack_into("<Q", record, _RECORD_NAME + name_length + _ZIP64_SIZE, size)
    else:
        struct.pack_into("<L", record, _RECORD_SIZE, size)
    return _with_method(record, _RECORD_METHOD)


def _with_method(record: bytearray, offset: int) -> bytes:
    if struct.unpack_from("<H", record, offset) != (_METHOD_STORED,):
        raise AssertionError("zipstream-ng's entry is not a stored one")
    struct.pack_into("<H", record, offset, _METHOD_DEFLATED)
    return bytes(record)
