"""The archive writer: its states, and what unzip programs read from its archives."""

import io
import logging
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from service.archive.writer import (
    ArchiveStateError,
    ArchiveWriter,
    EntryNameError,
    EntrySizeMismatch,
    Layout,
)
from service.archive.zipstream_adapter import LARGEST_WITHOUT_ZIP64
from service.model import Entry
from tests.unzip_tools import CENTRAL_DIRECTORY_READERS, STREAM_READERS, ZipReader, seven_zip

GOOD = {"Küche.jpg": b"\xff\xd8kitchen" * 500, "日本.png": b"\x89PNG" * 900, "_download_report.txt": b"all well\n"}
# An image may hold anything, even what looks like ZIP records.
HALF_IMAGE = b"PK\x03\x04 PK\x01\x02 PK\x07\x08" * 200

both_layouts = pytest.mark.parametrize("layout", list(Layout))


def _write_all(writer: ArchiveWriter, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Write chunks with the running CRC-32."""
    crc32 = 0
    for chunk in chunks:
        crc32 = zlib.crc32(chunk, crc32)
        yield from map(bytes, writer.write(chunk, crc32))


def _rolled_back(writer: ArchiveWriter, name: str, size: int | None = 10**6) -> bytes:
    sent = writer.open_entry(name, size) + b"".join(writer.write(HALF_IMAGE, zlib.crc32(HALF_IMAGE)))
    writer.roll_back()
    return sent


def _archive(order: str, layout: Layout) -> bytes:
    """Write the good entries, one for each ``g`` of ``order``, and a rolled-back one for each ``r``."""
    writer = ArchiveWriter(layout)
    good = iter(GOOD.items())
    parts = [writer.add(*next(good)) if kind == "g" else _rolled_back(writer, "half.jpg") for kind in order]
    return b"".join([*parts, *writer.finish()])


def _has_zip64(local_header: bytes) -> bool:
    return struct.unpack_from("<H", local_header, 28) != (0,)  # length of the extra field


def _read_as_stream(archive: bytes) -> list[tuple[str, bytes]]:
    """Read a streamable archive without its central directory: each entry's data marks its end."""
    found = []
    while archive.startswith(b"PK\x03\x04"):
        name_length, extra_length = struct.unpack_from("<HH", archive, 26)
        name = archive[30 : 30 + name_length].decode()
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        data = inflater.decompress(archive[30 + name_length + extra_length :])
        assert inflater.eof
        assert inflater.unused_data.startswith(b"PK\x07\x08" + struct.pack("<L", zlib.crc32(data)))
        archive = inflater.unused_data[24 if extra_length else 16 :]
        found.append((name, data))
    return found


def test_write_returns_a_stored_chunk_as_the_same_object() -> None:
    """Writing an image copies nothing."""
    writer = ArchiveWriter(Layout.STORED)
    writer.open_entry("a.jpg", 5)
    chunk = b"image"

    (part,) = writer.write(chunk, zlib.crc32(chunk))
    assert part is chunk


@given(st.lists(st.binary(max_size=10), max_size=6), st.booleans())
def test_streamable_data_is_one_deflate_stream(chunks: list[bytes], whole: bool) -> None:  # noqa: FBT001 - hypothesis
    """Whatever its chunks, closed or rolled back, an entry's data is a complete deflate stream."""
    writer = ArchiveWriter(Layout.STREAMABLE)
    sent = writer.open_entry("a.jpg") + b"".join(_write_all(writer, chunks))
    if whole:
        sent += writer.close_entry()[1]
    else:
        writer.roll_back()
    sent += writer.add("b.jpg", b"image") + b"".join(writer.finish())

    assert _read_as_stream(sent) == [("a.jpg", b"".join(chunks)), ("b.jpg", b"image")]


@both_layouts
def test_closed_entry_states_size_and_checksum(layout: Layout) -> None:
    """``close_entry`` returns the size and CRC-32 that the central directory states."""
    writer = ArchiveWriter(layout)
    header = writer.open_entry("a.jpg", 8)
    body = b"".join(_write_all(writer, [b"half", b"half"]))
    entry, end = writer.close_entry()
    tail = b"".join(writer.finish())

    assert entry == Entry(name="a.jpg", size=8, crc32=zlib.crc32(b"halfhalf"))
    assert list(writer.entries) == [entry]
    with zipfile.ZipFile(io.BytesIO(header + body + end + tail)) as opened:
        info = opened.getinfo("a.jpg")
    assert (info.file_size, info.CRC) == (entry.size, entry.crc32)


@both_layouts
def test_empty_chunk_adds_nothing(layout: Layout) -> None:
    """An empty chunk adds nothing, neither to the stream nor to the entry."""
    writer = ArchiveWriter(layout)
    writer.open_entry("a.jpg", 5)
    before = writer.bytes_out

    assert b"".join(writer.write(b"", 0)) == b""
    assert writer.bytes_out == before
    writer.write(b"image", zlib.crc32(b"image"))
    assert b"".join(writer.write(b"", zlib.crc32(b"image"))) == b""
    assert writer.close_entry()[0] == Entry("a.jpg", 5, zlib.crc32(b"image"))


@both_layouts
@pytest.mark.parametrize("reader", CENTRAL_DIRECTORY_READERS)
def test_empty_entry_is_extracted(reader: ZipReader, layout: Layout, tmp_path: Path) -> None:
    """An entry may have no bytes."""
    writer = ArchiveWriter(layout)
    path = tmp_path / "images.zip"
    path.write_bytes(b"".join([writer.add("empty", b""), writer.add("a.jpg", b"image"), *writer.finish()]))

    assert reader(path) == {"empty": b"", "a.jpg": b"image"}


@both_layouts
@pytest.mark.parametrize("reader", CENTRAL_DIRECTORY_READERS)
@pytest.mark.parametrize("order", ["ggg", "grggr", "grrgrrg"])
def test_unzip_programs_extract_finished_entries_only(
    reader: ZipReader, order: str, layout: Layout, tmp_path: Path
) -> None:
    """Programs that read the central directory find exactly the finished entries, bit for bit."""
    path = tmp_path / "images.zip"
    path.write_bytes(_archive(order, layout))

    assert reader(path) == GOOD


@pytest.mark.parametrize("reader", STREAM_READERS)
@pytest.mark.parametrize("order", ["ggg", "grggr", "rggg", "grrgrrg"])
def test_streamable_archive_can_be_read_from_a_pipe(reader: ZipReader, order: str, tmp_path: Path) -> None:
    """Readers of a pipe find every finished entry bit for bit, and the sent bytes of a rolled-back one."""
    path = tmp_path / "images.zip"
    path.write_bytes(_archive(order, Layout.STREAMABLE))
    found = reader(path)

    assert found.pop("half.jpg", None) == (HALF_IMAGE if "r" in order else None)
    assert found == GOOD


@both_layouts
@pytest.mark.parametrize("reader", CENTRAL_DIRECTORY_READERS)
@pytest.mark.parametrize("order", ["rggg", "rrgrgg"])
def test_roll_back_of_the_first_entry_loses_no_other(
    reader: ZipReader, order: str, layout: Layout, tmp_path: Path
) -> None:
    """Every finished entry is found although the archive begins with a rolled-back one, which only 7-Zip shows."""
    path = tmp_path / "images.zip"
    path.write_bytes(_archive(order, layout))
    found = reader(path)

    if reader is seven_zip:
        assert found.pop("half.jpg", HALF_IMAGE) == HALF_IMAGE
    assert found == GOOD


def test_seven_zip_extracts_a_name_written_again_after_a_roll_back(tmp_path: Path) -> None:
    """The whole image wins over the rolled-back one of the same name at the beginning of the archive."""
    writer = ArchiveWriter()
    parts = [_rolled_back(writer, "a.jpg"), writer.add("a.jpg", b"image"), *writer.finish()]
    path = tmp_path / "images.zip"
    path.write_bytes(b"".join(parts))

    assert seven_zip(path) == {"a.jpg": b"image"}


@both_layouts
def test_bytes_out_counts_rolled_back_entries(layout: Layout) -> None:
    """``bytes_out`` counts everything returned, also a rolled-back entry and its descriptor."""
    writer = ArchiveWriter(layout)
    parts = [_rolled_back(writer, "half.jpg"), writer.add("a.jpg", b"image"), _rolled_back(writer, "half.jpg")]
    parts += writer.finish()

    assert writer.bytes_out == len(b"".join(parts))
    assert [entry.name for entry in writer.entries] == ["a.jpg"]


@both_layouts
def test_rolled_back_name_is_free_again(layout: Layout) -> None:
    """A rolled-back image can be written again under its own name."""
    writer = ArchiveWriter(layout)
    parts = [_rolled_back(writer, "a.jpg"), writer.add("a.jpg", b"image"), *writer.finish()]

    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as opened:
        assert opened.namelist() == ["a.jpg"]
        assert opened.read("a.jpg") == b"image"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a.jpg", id="repeated"),
        pytest.param("", id="empty"),
        pytest.param("/etc/passwd", id="absolute"),
        pytest.param("a\0.jpg", id="nul"),
        pytest.param("folder/", id="folder"),
        pytest.param("\ud800.jpg", id="not_encodable"),
        pytest.param("é" * 40_000, id="too_long_for_the_format"),
    ],
)
def test_unusable_name_is_rejected(name: str) -> None:
    """A name that would change, fail or repeat is rejected, and leaves no trace in the archive."""
    writer = ArchiveWriter()
    parts = [writer.add("a.jpg", b"image")]
    with pytest.raises(EntryNameError):
        writer.open_entry(name, 5)
    parts += [writer.add("b.jpg", b"image"), *writer.finish()]

    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as opened:
        assert opened.namelist() == ["a.jpg", "b.jpg"]
        assert opened.testzip() is None


def test_negative_size_is_rejected() -> None:
    """A size below zero is a programming error."""
    with pytest.raises(ValueError, match="-1 bytes"):
        ArchiveWriter().open_entry("a.jpg", -1)


IDLE_ONLY: list[Callable[[ArchiveWriter], object]] = [
    lambda writer: writer.open_entry("b.jpg"),
    lambda writer: writer.add("b.jpg", b"image"),
    lambda writer: writer.finish(),
]
OPEN_ONLY: list[Callable[[ArchiveWriter], object]] = [
    lambda writer: writer.write(b"image", zlib.crc32(b"image")),
    lambda writer: writer.write(b"", 0),
    lambda writer: writer.close_entry(),
    lambda writer: writer.roll_back(),
]


def _idle() -> ArchiveWriter:
    return ArchiveWriter()


def _open() -> ArchiveWriter:
    writer = ArchiveWriter()
    writer.open_entry("a.jpg")
    return writer


def _finished() -> ArchiveWriter:
    writer = ArchiveWriter()
    writer.finish()
    return writer


@pytest.mark.parametrize(
    ("state", "calls"),
    [
        pytest.param(_idle, OPEN_ONLY, id="idle"),
        pytest.param(_open, IDLE_ONLY, id="open"),
        pytest.param(_finished, IDLE_ONLY + OPEN_ONLY, id="finished"),
    ],
)
def test_call_out_of_order_is_rejected(
    state: Callable[[], ArchiveWriter], calls: list[Callable[[ArchiveWriter], object]]
) -> None:
    """Every call in the wrong state raises and returns no bytes."""
    writer = state()
    before = writer.bytes_out
    for call in calls:
        with pytest.raises(ArchiveStateError):
            call(writer)

    assert writer.bytes_out == before


class WriterStateMachine(RuleBasedStateMachine):
    """Opens, writes, ends and misuses entries in any order; Python's zipfile reads the result."""

    @initialize(layout=st.sampled_from(Layout))
    def start(self, layout: Layout) -> None:
        """Begin with an empty archive."""
        self.layout = layout
        self.writer = ArchiveWriter(layout)
        self.sent: list[bytes] = []
        self.finished: dict[str, bytes] = {}
        self.data: bytes | None = None
        self.declared_size: int | None = None
        self.opened = 0

    @precondition(lambda self: self.data is None)
    @rule(declared_size=st.none() | st.integers(0, 20))
    def open_entry(self, declared_size: int | None) -> None:
        """Open an entry, with a declared size, which may be wrong, or without one."""
        self.opened += 1
        self.sent.append(self.writer.open_entry(f"{self.opened}é.jpg", declared_size))
        self.data, self.declared_size = b"", declared_size

    @precondition(lambda self: self.data is None)
    @rule(data=st.binary(max_size=20))
    def add(self, data: bytes) -> None:
        """Add a whole entry."""
        self.opened += 1
        self.sent.append(self.writer.add(f"{self.opened}.txt", data))
        self.finished[f"{self.opened}.txt"] = data

    @precondition(lambda self: self.data is not None)
    @rule(chunk=st.binary(max_size=12))
    def write(self, chunk: bytes) -> None:
        """Write a chunk, which is rejected if it exceeds the declared size."""
        assert self.data is not None
        if self.declared_size is not None and len(self.data + chunk) > self.declared_size:
            with pytest.raises(EntrySizeMismatch):
                self.writer.write(chunk, zlib.crc32(self.data + chunk))
            return
        self.sent.extend(map(bytes, self.writer.write(chunk, zlib.crc32(self.data + chunk))))
        self.data += chunk

    @precondition(lambda self: self.data is not None)
    @rule()
    def close_entry(self) -> None:
        """Close the open entry, which is rejected if it is smaller than declared."""
        assert self.data is not None
        if self.declared_size is not None and len(self.data) != self.declared_size:
            with pytest.raises(EntrySizeMismatch):
                self.writer.close_entry()
            return
        entry, end = self.writer.close_entry()
        assert (entry.size, entry.crc32) == (len(self.data), zlib.crc32(self.data))
        self.sent.append(end)
        self.finished[entry.name], self.data = self.data, None

    @precondition(lambda self: self.data is not None)
    @rule()
    def roll_back(self) -> None:
        """Roll the open entry back."""
        self.writer.roll_back()
        self.data = None

    @rule()
    def call_out_of_order(self) -> None:
        """Make every call that the state forbids."""
        for call in OPEN_ONLY if self.data is None else IDLE_ONLY:
            with pytest.raises(ArchiveStateError):
                call(self.writer)

    def teardown(self) -> None:
        """Finish the archive and compare its entries, read from the directory and, if streamable, as a stream."""
        if not hasattr(self, "writer"):
            return
        if self.data is not None:
            self.roll_back()
        archive = b"".join([*self.sent, *self.writer.finish()])

        assert len(archive) == self.writer.bytes_out
        assert [entry.name for entry in self.writer.entries] == list(self.finished)
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            assert opened.testzip() is None
            assert {name: opened.read(name) for name in opened.namelist()} == self.finished
        if self.layout is Layout.STREAMABLE:
            as_stream = _read_as_stream(archive)
            assert len(as_stream) == self.opened
            assert dict(self.finished.items() & as_stream) == self.finished


TestWriterStateMachine = WriterStateMachine.TestCase


@both_layouts
@pytest.mark.parametrize("size", [None, 0, 25 * 1024 * 1024])
def test_entry_of_usual_size_has_no_zip64(size: int | None, layout: Layout) -> None:
    """An image of usual or unknown size has no Zip64 field, which would make Safari stop after the first entry."""
    assert not _has_zip64(ArchiveWriter(layout).open_entry("a.jpg", size))


@both_layouts
def test_entry_of_unknown_size_fails_before_it_needs_zip64(layout: Layout) -> None:
    """An image that outgrows a plain entry is rejected, can be rolled back, and harms no other."""
    writer = ArchiveWriter(layout)
    writer.open_entry("endless.jpg")
    chunk = bytes(4 * 1024 * 1024)
    for _ in range(LARGEST_WITHOUT_ZIP64 // len(chunk)):
        writer.write(chunk, 0)
    with pytest.raises(EntrySizeMismatch):
        writer.write(chunk, 0)
    writer.roll_back()
    writer.add("a.jpg", b"image")

    assert [entry.name for entry in writer.entries] == ["a.jpg"]


@both_layouts
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(2**31 - 10_000, id="below_2_gib_without_its_blocks"),
        pytest.param(2**32 - 70_000, id="below_4_gib_without_its_blocks"),
        pytest.param(2**32 + 1, id="above_4_gib"),
    ],
)
def test_huge_entry_has_zip64(size: int, layout: Layout, tmp_path: Path) -> None:
    """A huge entry has Zip64 fields, and the next entry is found, also beyond 4 GiB."""
    writer = ArchiveWriter(layout)
    chunk = bytes(4 * 1024 * 1024)
    path = tmp_path / "huge.zip"
    with path.open("wb") as file:
        header = writer.open_entry("Schloß.jpg", size)
        file.write(header)
        crc32 = 0
        for start in range(0, size, len(chunk)):
            piece = chunk[: size - start]
            crc32 = zlib.crc32(piece, crc32)
            parts = writer.write(piece, crc32)
            file.seek(sum(map(len, parts)), io.SEEK_CUR)  # a hole instead of 4 GiB of zeros
        file.write(writer.close_entry()[1])
        file.write(writer.add("a.jpg", b"image"))
        file.writelines(writer.finish())

    assert _has_zip64(header)
    with zipfile.ZipFile(path) as opened:
        assert opened.getinfo("Schloß.jpg").file_size == size
        assert opened.getinfo("Schloß.jpg").external_attr == 0o100644 << 16
        assert (opened.getinfo("Schloß.jpg").compress_size == size) is (layout is Layout.STORED)
        assert opened.read("a.jpg") == b"image"


@both_layouts
def test_central_directory_is_sent_in_bounded_chunks(layout: Layout, caplog: pytest.LogCaptureFixture) -> None:
    """The directory of very many entries is neither one giant chunk nor a chunk for each entry."""
    caplog.set_level(
        logging.ERROR, "zipstream.ng"
    )  # as in the service: it warns about the size of every streamable entry
    writer = ArchiveWriter(layout)
    for number in range(66_000):
        writer.add(f"{number:06}.jpg", b"")
    chunks = list(writer.finish())

    assert max(map(len, chunks)) < 65 * 1024
    assert len(chunks) < 100
    with zipfile.ZipFile(io.BytesIO(bytes(writer.bytes_out - sum(map(len, chunks))) + b"".join(chunks))) as opened:
        assert len(opened.namelist()) == 66_000
