"""Streaming ZIP writer without I/O: names and chunks go in, the bytes to send come out."""

from collections.abc import Iterator, Sequence
from enum import Enum, StrEnum
from typing import Final

from isal import isal_zlib

from service.archive import stored_blocks
from service.archive.zipstream_adapter import LARGEST_WITHOUT_ZIP64, EntryRecord, ZipStreamAdapter, name_problem
from service.model import Entry, Reason

# The central directory comes record by record, about 80 bytes each. Sent one by one, each would cost a write.
_DIRECTORY_CHUNK_BYTES: Final = 64 * 1024

# The bytes to send, in parts that share memory with the input: the sender joins them once, or not at all.
Parts = tuple[bytes | memoryview, ...]


class Layout(StrEnum):
    """How an entry's data is stored, uncompressed in either layout.

    ``stored``: as it is. Some programs that unpack a pipe cannot find the end of such an entry. ``streamable``: in
    deflate blocks, which mark their end.
    """

    STORED = "stored"
    STREAMABLE = "streamable"


class ArchiveStateError(RuntimeError):
    """A call out of order, such as opening a second entry inside the first. The writer's state is unchanged."""


class EntryNameError(ValueError):
    """A name that the archive would not store as given, or already has. The writer's state is unchanged."""


class EntrySizeMismatch(Exception):
    """An entry's bytes do not match its declared size. The entry is still open and must be rolled back."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _State(Enum):
    IDLE = "between entries"
    OPEN = "inside an entry"
    FINISHED = "finished"


class ArchiveWriter:
    """Writes one ZIP archive: open an entry, write, close or roll back; finish at the end.

    Every method returns the bytes to send next, ``write`` in parts; they must reach the client in that order. The sent
    bytes of a rolled-back entry stay in the stream, but no central directory record refers to them: unzip programs do
    not see the entry, and its name is free again. One exception is known: 7-Zip shows rolled-back entries at the very
    beginning of an archive as files, so the first entry should be the one that is least likely to fail.

    The sizes follow the data, so the size declared at opening only decides about Zip64. Without a declared size
    zipstream-ng always chooses Zip64, and Safari extracts only the first file of an archive that starts so. An entry of
    unknown size is therefore declared small, and fails with ``EntrySizeMismatch`` before it outgrows that.
    """

    def __init__(self, layout: Layout = Layout.STORED) -> None:
        self._deflated = layout is Layout.STREAMABLE
        self._zip = ZipStreamAdapter(deflated=self._deflated)
        self._end_of_data = stored_blocks.FINAL_BLOCK if self._deflated else b""
        self._state = _State.IDLE
        self._bytes_out = 0
        self._entries: list[Entry] = []
        self._names: set[str] = set()
        self._pending_end = b""  # the ends of rolled-back entries, sent before the next bytes
        # The open entry:
        self._record: EntryRecord | None = None
        self._name = ""
        self._declared_size: int | None = None
        self._size = 0
        self._compressed_size = 0
        self._crc32 = 0

    @property
    def bytes_out(self) -> int:
        """Bytes returned so far: framing, data, and what was rolled back."""
        return self._bytes_out

    @property
    def entries(self) -> Sequence[Entry]:
        """The entries closed so far, in the order of the central directory."""
        return self._entries

    def open_entry(self, name: str, size: int | None = None) -> bytes:
        """Open an entry and return its local header; ``size`` is the declared size, if known.

        Raises:
            EntryNameError: the archive would not store the name as given, or already has it.
            ValueError: the size is negative.
        """
        self._require_idle()
        if name in self._names:
            raise EntryNameError(f"the archive already has an entry {name!r}")
        if problem := name_problem(name):
            raise EntryNameError(problem)
        if size is not None and size < 0:
            raise ValueError(f"an entry cannot have {size} bytes")
        self._record = self._zip.open_entry(name, size or 0)
        self._name, self._declared_size = name, size
        self._size = self._compressed_size = self._crc32 = 0
        self._state = _State.OPEN
        return self._count(self._take_pending_end() + self._record.header)

    def write(self, chunk: bytes, crc32: int) -> Parts:
        """Return the bytes to send for ``chunk``, all of them: the same object, or blocks that share its memory.

        Raises:
            EntrySizeMismatch: the entry would exceed its declared size; the chunk was not added.
        """
        record = self._open_record()
        size = self._size + len(chunk)
        if self._declared_size is not None and size > self._declared_size:
            raise EntrySizeMismatch(Reason.TOO_LONG, f"{self._name!r} has more than {self._declared_size} bytes")
        parts = stored_blocks.encode(chunk) if self._deflated else (chunk,)
        sent = sum(map(len, parts))
        compressed_size = self._compressed_size + sent
        if not record.has_zip64 and compressed_size + len(self._end_of_data) > LARGEST_WITHOUT_ZIP64:
            raise EntrySizeMismatch(Reason.TOO_LONG, f"{self._name!r} outgrows {LARGEST_WITHOUT_ZIP64} bytes")
        self._size, self._compressed_size = size, compressed_size
        self._crc32 = crc32
        self._bytes_out += sent
        return parts

    def close_entry(self) -> tuple[Entry, bytes]:
        """Complete the open entry; return it and the bytes that end it.

        Raises:
            EntrySizeMismatch: the entry is smaller than declared; it stays open.
        """
        record = self._open_record()
        if self._declared_size is not None and self._size != self._declared_size:
            detail = f"{self._name!r} has {self._size} bytes, not {self._declared_size}"
            raise EntrySizeMismatch(Reason.TRUNCATED, detail)
        end = self._entry_end(record)
        record.commit()
        entry = Entry(self._name, self._size, self._crc32)
        self._entries.append(entry)
        self._names.add(entry.name)
        self._leave_entry()
        return entry, self._count(end)

    def roll_back(self) -> None:
        """Leave the open entry out of the archive. Its sent bytes still count in later offsets.

        The entry still gets its end, returned before the next bytes: 7-Zip loses the whole archive if the first entry
        has no data descriptor, and readers of a pipe find the next entry by it.
        """
        record = self._open_record()
        self._pending_end += self._entry_end(record)
        record.discard()
        self._leave_entry()

    def add(self, name: str, data: bytes) -> bytes:
        """Return a whole small entry."""
        header = self.open_entry(name, len(data))
        body = self.write(data, isal_zlib.crc32(data))
        _, end = self.close_entry()
        return b"".join((header, *body, end))

    def finish(self) -> Iterator[bytes]:
        """Finish the archive: return its central directory and end records in chunks of bounded size."""
        self._require_idle()
        self._state = _State.FINISHED
        return self._directory()

    def _directory(self) -> Iterator[bytes]:
        chunk = bytearray(self._take_pending_end())
        for record in self._zip.directory(self._entries):
            chunk += record
            if len(chunk) >= _DIRECTORY_CHUNK_BYTES:
                yield self._count(bytes(chunk))
                chunk.clear()
        if chunk:
            yield self._count(bytes(chunk))

    def _entry_end(self, record: EntryRecord) -> bytes:
        """Return the end of the entry's data and its data descriptor."""
        compressed_size = self._compressed_size + len(self._end_of_data)
        return self._end_of_data + record.descriptor(self._crc32, compressed_size, self._size)

    def _require_idle(self) -> None:
        if self._state is not _State.IDLE:
            raise ArchiveStateError(f"the archive is not between entries but {self._state.value}")

    def _open_record(self) -> EntryRecord:
        if self._record is None:
            raise ArchiveStateError(f"no entry is open: the archive is {self._state.value}")
        return self._record

    def _leave_entry(self) -> None:
        self._record = None
        self._state = _State.IDLE

    def _take_pending_end(self) -> bytes:
        pending, self._pending_end = self._pending_end, b""
        return pending

    def _count(self, data: bytes) -> bytes:
        self._bytes_out += len(data)
        return data
