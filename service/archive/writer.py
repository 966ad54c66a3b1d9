"""ZIP framing without I/O: names and chunks go in, the bytes to send come out.

The only file that knows zipstream-ng, which has no types; nothing private of it is touched. It is driven without
a thread: a generator is our "file". It never sees the data, which for stored entries goes out as it came in: at an
entry's end it is given one stand-in with the data's length and CRC-32, and makes the descriptor and the directory
record from that. The checksum is then isal's, ten times as fast as zlib's, which zipstream-ng would use: that was a
fifth of the CPU time of an archive of large images.
"""

import struct
from collections.abc import Generator, Iterator, Sequence
from enum import Enum
from typing import Final, Self

from isal import isal_zlib
from zipstream import ZIP_STORED, ZipStream

from service.model import Entry, Reason

# Above this zipstream-ng, like Python's zipfile, gives an entry Zip64 fields: readers exist that take 4-byte
# sizes as signed.
LARGEST_WITHOUT_ZIP64: Final = 2**31 - 1
# The central directory comes record by record, about 80 bytes each; sent singly they would cost a write each.
_TAIL_PIECE_BYTES: Final = 64 * 1024

# Data descriptors with signature (APPNOTE 4.3.9), CRC-32, compressed size and size, by length: plain and Zip64.
_DESCRIPTORS: Final = {layout.size: layout for layout in (struct.Struct("<4xLLL"), struct.Struct("<4xLQQ"))}


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

    Every method returns the bytes to send next; they must reach the client in that order. What was sent of an
    entry that is rolled back stays in the stream, but no central directory record points at it, so unzip programs
    do not see it, and its name is free again. One exception is known: 7-Zip shows rolled-back entries at the very
    beginning of an archive as files, so the first entry should be the one that is least likely to break.

    Images are stored, not compressed. zipstream-ng writes the size behind the data, so what is promised at
    opening only decides about Zip64. Without a promise it would always choose Zip64, and Safari keeps only the
    first file of an archive that starts so; an entry of unknown size is therefore announced as small, and broken
    off with ``EntrySizeMismatch`` before it outgrows that.
    """

    def __init__(self) -> None:
        # Another layout (deflate blocks, for readers that cannot seek) is another compress_type here, and bytes
        # flushed ahead of the descriptor when an entry ends.
        self._zip = ZipStream(compress_type=ZIP_STORED)
        self._state = _State.IDLE
        self._bytes_out = 0
        self._entries: list[Entry] = []
        self._names: set[str] = set()
        self._owed = b""  # the descriptors of rolled-back entries
        # Of the open entry:
        self._name = ""
        self._promised: int | None = None
        self._written = 0
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
        # For an entry of unknown size zipstream-ng will log that it expected 0 bytes; that means nothing here.
        self._zip.add(self._stand_in(), name, size=size or 0)
        self._name, self._promised, self._written, self._crc32 = name, size, 0, 0
        self._framing = self._zip.file()
        self._state = _State.OPEN
        return self._sent(self._settled() + next(self._framing))

    def write(self, chunk: bytes) -> bytes:
        """Return what to send for ``chunk``: since images are stored, the very same object.

        Raises:
            EntrySizeMismatch: the chunk is more than the promise leaves room for; it was not taken.
        """
        self._open_framing()
        limit = LARGEST_WITHOUT_ZIP64 if self._promised is None else self._promised
        if self._written + len(chunk) > limit:
            raise EntrySizeMismatch(Reason.TOO_LONG, f"{self._name!r} has more than {limit} bytes")
        self._written += len(chunk)
        self._crc32 = isal_zlib.crc32(chunk, self._crc32)
        return self._sent(chunk)

    def close_entry(self) -> tuple[Entry, bytes]:
        """Complete the open entry and return it with the bytes that end it.

        Raises:
            EntrySizeMismatch: fewer bytes were written than promised; the entry stays open.
        """
        framing = self._open_framing()
        if self._promised is not None and self._written != self._promised:
            raise EntrySizeMismatch(Reason.TRUNCATED, f"{self._name!r} has {self._written} bytes, not {self._promised}")
        descriptor = self._descriptor(framing)
        entry = _described_entry(self._name, descriptor)
        if (entry.size, entry.crc32) != (self._written, self._crc32):
            raise AssertionError(f"zipstream-ng describes {self._name!r} as {entry}")
        next(framing, None)  # brings nothing more, but an entry counts only when its generator has ended
        self._entries.append(entry)
        self._names.add(entry.name)
        self._leave_entry()
        return entry, self._sent(descriptor)

    def roll_back(self) -> None:
        """Leave the open entry out of the archive. What was sent of it counts in later offsets all the same.

        It still gets its data descriptor, handed out in front of whatever comes next: 7-Zip loses the whole archive
        if the first entry is one without, and readers of streams find the next entry by it.
        """
        framing = self._open_framing()
        self._owed += self._descriptor(framing)
        framing.close()
        self._leave_entry()

    def add(self, name: str, data: bytes) -> bytes:
        """Return a whole small entry at once."""
        header = self.open_entry(name, len(data))
        body = self.write(data)
        _, end = self.close_entry()
        return b"".join((header, body, end))

    def finish(self) -> Iterator[bytes]:
        """End the archive: return its central directory and end records in pieces of bounded size."""
        self._require_idle()
        self._state = _State.FINISHED
        return self._tail()

    def _tail(self) -> Iterator[bytes]:
        piece = bytearray(self._settled())
        for record in self._zip.footer():
            piece += record
            if len(piece) >= _TAIL_PIECE_BYTES:
                yield self._sent(bytes(piece))
                piece.clear()
        if piece:
            yield self._sent(bytes(piece))

    def _stand_in(self) -> Iterator[bytes]:
        """Yield what stands for the open entry's data; asked for when all of it has been written."""
        if self._written:
            yield _StandIn(self._written, self._crc32)

    def _descriptor(self, framing: Generator[bytes, None, bool]) -> bytes:
        """Let zipstream-ng account for the data, and return the data descriptor that it makes of it."""
        if self._written:
            next(framing)  # the stand-in itself, which nobody sends
        return next(framing)

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
    for _ in range(32):
        high = register >> 31
        register = ((register ^ (_POLYNOMIAL * high)) << 1 & _ALL_ONES) | high
    return (register ^ _ALL_ONES).to_bytes(4, "little")


def _check_name(name: str) -> None:
    """Let a throw-away archive try the name, so that a bad one leaves no trace in the real one."""
    trial = ZipStream()
    try:
        trial.add(iter(()), name)
        stands_as = trial.info_list()[0]["name"]
        next(trial.file())  # encodes the name and packs its length into 16 bits
    except (ValueError, struct.error) as error:
        raise EntryNameError(f"{name[:100]!r} cannot be an entry's name: {error}") from error
    if stands_as != name:
        raise EntryNameError(f"{name[:100]!r} would become {stands_as!r}")


def _described_entry(name: str, descriptor: bytes) -> Entry:
    crc32, _, size = _DESCRIPTORS[len(descriptor)].unpack(descriptor)
    return Entry(name=name, size=size, crc32=crc32)
