"""The adapter's own rules, and the behaviour of zipstream-ng that it depends on.

If an upgrade of zipstream-ng fails one of the tests of its behaviour, the adapter must be reviewed.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from zipstream import ZIP_STORED, ZipStream

from service.archive.zipstream_adapter import name_problem
from tests.unzip_tools import UnzipError, seven_zip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("a.jpg", id="plain"),
        pytest.param("Küche.jpg", id="not_ascii"),
        pytest.param("_download_report.txt", id="leading_underscore"),
        pytest.param("a" * 250 + ".jpg", id="long"),
        pytest.param("folder/a.jpg", id="in_a_folder"),
    ],
)
def test_name_that_is_stored_as_given_has_no_problem(name: str) -> None:
    """Plain names pass at once, other usable names after a trial."""
    assert name_problem(name) is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        pytest.param("", "cannot be an entry's name", id="empty"),
        pytest.param("/etc/passwd", "would become 'etc/passwd'", id="absolute"),
        pytest.param("a\0.jpg", "would become 'a'", id="nul"),
        pytest.param("folder/", "cannot be an entry's name", id="folder"),
        pytest.param("\ud800.jpg", "cannot be an entry's name", id="not_encodable"),
        pytest.param("é" * 40_000, "cannot be an entry's name", id="too_long_for_the_format"),
    ],
)
def test_name_problem_explains_the_rejection(name: str, problem: str) -> None:
    """A name that zipstream-ng would change or reject has a problem, in few words however long the name is."""
    found = name_problem(name)
    assert found is not None
    assert problem in found
    assert len(found) < 1000


# The behaviour of zipstream-ng.


def _has_zip64(local_header: bytes) -> bool:
    return struct.unpack_from("<H", local_header, 28) != (0,)  # length of the extra field


def test_zipstream_reads_one_chunk_for_each_piece() -> None:
    """It can be driven without a thread: one chunk in, the same object out."""
    given: list[bytes] = []

    def chunks() -> Iterator[bytes]:
        while given:
            yield given.pop()

    stream = ZipStream(compress_type=ZIP_STORED)
    stream.add(chunks(), "a.jpg", size=10)
    framing = stream.file()
    assert next(framing).startswith(b"PK\x03\x04")
    for chunk in (b"image", b"bytes"):
        given.append(chunk)
        assert next(framing) is chunk
    assert next(framing) == b"PK\x07\x08" + struct.pack("<LLL", zlib.crc32(b"imagebytes"), 10, 10)
    assert next(framing, None) is None


def test_zipstream_reads_chunks_that_are_added_late() -> None:
    """It reads a list only after the local header: the adapter fills it at the entry's end."""
    chunks: list[bytes] = []
    stream = ZipStream(compress_type=ZIP_STORED)
    stream.add(iter(chunks), "a.jpg", size=5)
    framing = stream.file()
    next(framing)
    chunks.append(b"image")

    assert [next(framing), next(framing)][1] == b"PK\x07\x08" + struct.pack("<LLL", zlib.crc32(b"image"), 5, 5)


@pytest.mark.parametrize("pieces", [1, 2, 3], ids=["after_header", "after_chunk", "after_descriptor"])
def test_zipstream_leaves_out_an_entry_whose_generator_is_closed(pieces: int) -> None:
    """Closed at any point, even after its descriptor, an entry is not in the directory but its bytes count."""
    stream = ZipStream()
    stream.add(iter([b"image"]), "half.jpg", size=5)
    framing = stream.file()
    sent = [next(framing) for _ in range(pieces)]
    framing.close()
    stream.add(b"good", "good.jpg")

    with zipfile.ZipFile(io.BytesIO(b"".join([*sent, *stream]))) as opened:
        assert [info.header_offset for info in opened.infolist()] == [len(b"".join(sent))]
        assert opened.read("good.jpg") == b"good"


@pytest.mark.parametrize("size", [0, 2**30])
def test_zipstream_omits_zip64_for_a_small_declared_size(size: int) -> None:
    """An entry of known size has Zip64 fields only if it needs them, and 0 is a size."""
    stream = ZipStream()
    stream.add(iter([b"image"]), "a.jpg", size=size)

    assert not _has_zip64(next(stream.file()))


@pytest.mark.parametrize("size", [None, 2**31])
def test_zipstream_chooses_zip64_for_an_unknown_or_large_size(size: int | None) -> None:
    """An entry of unknown size always has Zip64 fields: why the writer declares a size."""
    stream = ZipStream()
    stream.add(iter([b"image"]), "a.jpg", size=size)

    assert _has_zip64(next(stream.file()))


def test_zipstream_yields_one_directory_record_at_a_time() -> None:
    """The directory is one record for each entry, in their order, then its end: the adapter patches each record."""
    stream = ZipStream()
    for name in ("b.jpg", "a.jpg"):
        stream.add(b"image", name)
        list(stream.file())
    records = list(stream.footer())

    assert [record[:4] for record in records] == [b"PK\x01\x02", b"PK\x01\x02", b"PK\x05\x06"]
    assert [record[46:] for record in records[:2]] == [b"b.jpg", b"a.jpg"]


def test_seven_zip_needs_the_descriptor_of_a_first_entry_rolled_back(tmp_path: Path) -> None:
    """Without it 7-Zip reads all that follows as the first entry: why a rolled-back entry gets its descriptor."""
    bare = ZipStream()
    bare.add(iter([b"half an image" * 400, b"never sent"]), "half.jpg", size=10**6)
    framing = bare.file()
    parts = [next(framing), next(framing)]
    framing.close()
    bare.add(b"image", "a.jpg")
    path = tmp_path / "images.zip"
    path.write_bytes(b"".join([*parts, *bare]))

    with pytest.raises(UnzipError, match="Unexpected end"):
        seven_zip(path)
