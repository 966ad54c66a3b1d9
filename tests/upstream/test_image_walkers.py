"""Where an image ends in its file: files of real encoders, in chunks of any size."""

import io
import itertools
import random
import struct
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from service.upstream.image_formats import sniff
from service.upstream.image_walkers import new_walker

try:
    import pillow_jxl  # noqa: F401 - teaches Pillow the format
except ImportError:
    HAS_JXL = False
else:
    HAS_JXL = True


def picture(size: tuple[int, int] = (96, 64), shift: int = 0) -> Image.Image:
    """Return a small picture with some detail."""
    return Image.effect_mandelbrot(size, (-2, -1, 1 + shift, 1), 100).convert("RGB")


def encoded(name: str, **options: object) -> bytes:
    """Return the picture as Pillow writes it."""
    file = io.BytesIO()
    picture().save(file, name, **options)
    return file.getvalue()


def exif_with_thumbnail() -> bytes:
    """Return an EXIF block whose second directory is a JPEG thumbnail (EXIF 2.32 section 4.5.5)."""
    thumbnail = io.BytesIO()
    picture((24, 16)).save(thumbnail, "JPEG")
    content = thumbnail.getvalue()
    first = struct.pack(">HI", 0, 14)  # no entries; the next directory follows
    entries = struct.pack(">HHII", 0x0201, 4, 1, 44) + struct.pack(">HHII", 0x0202, 4, 1, len(content))
    second = struct.pack(">H", 2) + entries + struct.pack(">I", 0)
    return b"Exif\0\0" + b"MM\0*\0\0\0\x08" + first + second + content


def animation(name: str) -> bytes:
    """Return two frames in one file."""
    return encoded(name, save_all=True, append_images=[picture(shift=1)], duration=40)


def files() -> Iterator[object]:
    """Yield files of each format, named."""
    yield pytest.param(encoded("JPEG"), id="jpeg")
    yield pytest.param(encoded("JPEG", progressive=True), id="jpeg progressive")
    yield pytest.param(encoded("JPEG", restart_marker_rows=1, quality=95), id="jpeg with restart markers")
    yield pytest.param(encoded("JPEG", exif=exif_with_thumbnail(), progressive=True), id="jpeg with a thumbnail")
    yield pytest.param(encoded("JPEG", comment=b"\xff\xd9\xff\xda\0\x02\xff\xd9"), id="jpeg with markers in a comment")
    yield pytest.param(encoded("PNG"), id="png")
    yield pytest.param(encoded("WEBP", quality=40), id="webp lossy")
    yield pytest.param(encoded("WEBP", lossless=True), id="webp lossless")
    yield pytest.param(animation("WEBP"), id="webp animated")
    if features.check("avif"):
        yield pytest.param(encoded("AVIF", quality=40), id="avif")
        yield pytest.param(animation("AVIF"), id="avif sequence")
    if HAS_JXL:
        yield pytest.param(encoded("JXL", use_container=True), id="jxl container")


FILES = list(files())
CONTENTS = [parameter.values[0] for parameter in FILES]  # type: ignore[attr-defined]
MIB = 2**20
FILM = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + struct.pack(">I4s", 1000, b"mdat") + bytes(992)


def ended(*chunks: bytes) -> bool | None:
    """Walk a file of these chunks; return whether it has ended."""
    start = b"".join(chunks)[:4096]
    image_format = sniff(start)
    assert image_format is not None
    walker = new_walker(image_format, start)
    for chunk in chunks:
        walker.feed(chunk)
    return walker.has_ended()


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """Cut data at these offsets."""
    offsets = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(offsets)]


@pytest.mark.parametrize("content", FILES)
def test_complete_file_has_ended(content: bytes) -> None:
    """It has ended with its last byte, in one chunk and byte by byte."""
    assert ended(content) is True
    assert ended(*(content[at : at + 1] for at in range(len(content)))) is True


@pytest.mark.parametrize("content", FILES)
def test_truncated_file_has_not_ended(content: bytes) -> None:
    """A file without its last bytes has not ended, wherever it is cut: also right behind the end of a thumbnail."""
    found = sniff(content)
    assert found is not None
    walker = new_walker(found, content)
    for at in range(len(content) - 1):
        walker.feed(content[at : at + 1])
        assert walker.has_ended() is False, f"after {at + 1} of {len(content)} bytes"


@given(st.sampled_from(CONTENTS), st.binary(max_size=300), st.lists(st.integers(0, 2**20), max_size=12))
def test_trailing_bytes_change_nothing(content: bytes, trailing: bytes, cuts: list[int]) -> None:
    """Bytes behind the end of an image change nothing, wherever the chunks are cut."""
    assert ended(*split(content + trailing, cuts)) is True


@given(st.sampled_from(CONTENTS), st.integers(1, 2**20), st.lists(st.integers(0, 2**20), max_size=12))
@settings(max_examples=300)
def test_chunk_sizes_change_nothing(content: bytes, missing: int, cuts: list[int]) -> None:
    """A truncated file has not ended, however it is cut into chunks."""
    cut = content[: max(32, len(content) - missing)]
    assert ended(*split(cut, cuts)) is False


@pytest.mark.parametrize("content", FILES)
@pytest.mark.parametrize(
    "trailing",
    [
        pytest.param(bytes(65), id="65 zeros"),
        pytest.param(bytes(4 * MIB), id="4 MiB of zeros"),
        pytest.param(FILM, id="a film"),
        pytest.param(FILM[:700], id="half a film"),
        pytest.param(b"made by a camera that says so behind each of its pictures", id="text"),
        pytest.param(encoded("JPEG"), id="another image"),
    ],
)
def test_appended_data_is_behind_the_end(content: bytes, trailing: bytes) -> None:
    """Paddings, motion photos and second images are behind the end."""
    assert ended(content + trailing) is True
    assert ended(content, trailing) is True


@given(st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x20\0\0\0WEBP"]), st.binary(max_size=400))
def test_arbitrary_bytes_are_walked(start: bytes, rest: bytes) -> None:
    """A file that is no image behind its first bytes is walked without an error, with the same result in any chunks."""
    data = start + rest
    assert ended(data) == ended(*split(data, [len(data) // 2])) == ended(*split(data, range(len(data))))


@given(st.binary(max_size=200), st.sampled_from([b"meta", b"mdat", b"free", b"junk"]))
def test_arbitrary_boxes_are_walked(rest: bytes, box_type: bytes) -> None:
    """The same for boxes."""
    data = b"\0\0\0\x14ftypavif\0\0\0\0avif\0\0\0\x09" + box_type + b"x" + rest
    assert ended(data) == ended(*split(data, [len(data) // 2])) == ended(*split(data, range(len(data))))


AVIF_START = b"\0\0\0\x14ftypavif\0\0\0\0avif" + b"\0\0\0\x0cmeta\0\0\0\0"
JXL_START = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x14ftypjxl \0\0\0\0jxl "


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(AVIF_START + b"\0\0\0\0mdat" + bytes(50), None, id="avif data to the end of the file"),
        pytest.param(AVIF_START + b"\0\0\0\x01mdat" + (16 + 50).to_bytes(8) + bytes(50), True, id="64-bit size"),
        pytest.param(AVIF_START + b"\0\0\0\x01mdat" + (16 + 51).to_bytes(8) + bytes(50), False, id="64-bit size, cut"),
        pytest.param(AVIF_START, False, id="avif without data"),
        pytest.param(AVIF_START[:20] + b"\0\0\0\x0cmdat\0\0\0\0", False, id="avif without description"),
        pytest.param(AVIF_START[:20] + b"\0\0\0\x0cmdat\0\0\0\0" + AVIF_START[20:], True, id="avif data first"),
        pytest.param(AVIF_START + b"\0\0\0\x0cmdat\0\0\0\0\0\0\0\x0cfree\0\0\0\0", True, id="a box behind the data"),
        pytest.param(AVIF_START + b"\0\0\0\x0cmdat\0\0\0\0\0\0\0\x0cfree\0\0\0", False, id="half a box behind it"),
        pytest.param(AVIF_START + b"\0\0\0\x03mdat" + bytes(50), False, id="a size that no box has"),
        pytest.param(JXL_START + b"\0\0\0\x0cjxlc\0\0\0\0", True, id="jxl codestream"),
        pytest.param(JXL_START + b"\0\0\0\x0cjxlc\0\0\0", False, id="jxl codestream, cut"),
        pytest.param(JXL_START + b"\0\0\0\x0djxlp\0\0\0\0x", False, id="jxl, first part only"),
        pytest.param(JXL_START + b"\0\0\0\x0djxlp\0\0\0\0x\0\0\0\x0djxlp\x80\0\0\1x", True, id="jxl, all parts"),
        pytest.param(b"\xff\x0a" + bytes(100), None, id="jxl without a container"),
        pytest.param(b"\xff\xd8\xff\xe1\0\x08Exif\xff\xd9\xff\xd9" + bytes(200), False, id="jpeg without a scan"),
        pytest.param(b"\xff\xd8\xff\xff\xff\xda\0\x02xx\xff\0\xff\xd3x\xff\xff\xff\xd9", True, id="jpeg fill bytes"),
        pytest.param(b"\xff\xd8\xff\xda\0\x02xx\xff\xdc\0\x04\xff\xd9", False, id="jpeg segment between scans"),
        pytest.param(b"\xff\xd8\xff\xda\0\x02xx\xff", False, id="jpeg, half a marker"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + b"x" * 200 + b"\0\0\0\0IEND\xaeB`", False, id="png without last byte"),
        pytest.param(b"RIFF\xd0\0\0\0WEBP" + b"x" * 206, True, id="webp, 2 bytes more"),
        pytest.param(b"RIFF\xd1\0\0\0WEBP" + b"x" * 205, True, id="webp, odd size"),
        pytest.param(b"RIFF\xd0\0\0\0WEBP" + b"x" * 203, False, id="webp, cut"),
        pytest.param(b"RIFF\0\0\0\0WEBP" + b"x" * 203, None, id="webp of unknown size"),
    ],
)
def test_end_of_file_structures(content: bytes, expected: bool | None) -> None:  # noqa: FBT001 - what is expected
    """The end is found by the file's structure, whatever its encoder."""
    assert ended(content) is expected
    assert ended(*split(content, range(len(content)))) is expected


def test_large_photo_in_large_chunks() -> None:
    """The end of a photo of megabytes is seen in any chunk, with any trailing bytes."""
    grain = Image.frombytes("RGB", (1000, 700), random.Random(1).randbytes(1000 * 700 * 3))
    for progressive in (False, True):
        file = io.BytesIO()
        grain.save(file, "JPEG", quality=95, progressive=progressive)
        content = file.getvalue()
        assert len(content) > MIB // 2
        for trailing in (b"", bytes(MIB), random.Random(2).randbytes(MIB), b"\xff" * MIB, FILM * 100, content):
            for size in (16 * 1024, 256 * 1024, MIB):
                whole = content + trailing
                assert ended(*(whole[at : at + size] for at in range(0, len(whole), size))) is True
        for missing in (1, 2, 1000, 300_000):
            cut = content[:-missing]
            for size in (16 * 1024, 256 * 1024, MIB):
                assert ended(*(cut[at : at + size] for at in range(0, len(cut), size))) is False


def test_scan_data_in_small_chunks() -> None:
    """Stuffed bytes and markers may be cut in two."""
    start, end = b"\xff\xd8\xff\xda\0\x02", b"\xff\xd9"
    body = [b"\xff\0" * 500 + b"\xff", b"\xd0" + b"x" * 1000] * 200
    assert ended(start, *body, end[:1]) is False
    assert ended(start, *body, end[:1], end[1:]) is True
