"""What a picture file looks like, judged on files that a real encoder made."""

import io

import pytest
from PIL import Image, features

from service.upstream.formats import (
    AVIF,
    JPEG,
    JXL,
    PNG,
    SNIFF_BYTES,
    TAIL_BYTES,
    WEBP,
    ImageFormat,
    has_ended,
    sniff,
    stated_size,
)

try:
    import pillow_jxl  # noqa: F401 - teaches Pillow the format
except ImportError:
    HAS_JXL = False
else:
    HAS_JXL = True


def _encoded(name: str, **options: object) -> bytes:
    picture = Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 100).convert("RGB")
    file = io.BytesIO()
    picture.save(file, name, **options)
    return file.getvalue()


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot write AVIF")
needs_jxl = pytest.mark.skipif(not HAS_JXL, reason="Pillow's plug-in for JPEG XL is not installed")
FORMATS = [
    pytest.param("JPEG", {}, JPEG, id="jpeg"),
    pytest.param("JPEG", {"progressive": True, "quality": 5}, JPEG, id="jpeg_progressive"),
    pytest.param("JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}, JPEG, id="jpeg_exif"),
    pytest.param("PNG", {}, PNG, id="png"),
    pytest.param("WEBP", {"quality": 40}, WEBP, id="webp"),
    pytest.param("WEBP", {"lossless": True}, WEBP, id="webp_lossless"),
    pytest.param("AVIF", {"quality": 40}, AVIF, id="avif", marks=needs_avif),
    pytest.param("JXL", {"quality": 40}, JXL, id="jxl", marks=needs_jxl),
    pytest.param("JXL", {"use_container": True}, JXL, id="jxl_container", marks=needs_jxl),
]


def _ended(picture: bytes, image_format: ImageFormat) -> bool | None:
    return has_ended(image_format, picture[:SNIFF_BYTES], picture[-TAIL_BYTES:], len(picture))


@pytest.mark.parametrize(("name", "options", "image_format"), FORMATS)
def test_real_picture_is_known_by_its_head(name: str, options: dict[str, object], image_format: ImageFormat) -> None:
    """The first bytes are enough, and more of them change nothing."""
    picture = _encoded(name, **options)

    assert sniff(picture[:SNIFF_BYTES]) is image_format
    assert sniff(picture) is image_format


@pytest.mark.parametrize(("name", "options", "image_format"), FORMATS)
def test_complete_picture(name: str, options: dict[str, object], image_format: ImageFormat) -> None:
    """A complete picture is never called cut off; where the format can say it, it is called complete."""
    can_say = image_format in {JPEG, PNG, WEBP}
    assert _ended(_encoded(name, **options), image_format) is (True if can_say else None)


@pytest.mark.parametrize(("name", "options", "image_format"), FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_picture_cut_off(name: str, options: dict[str, object], image_format: ImageFormat, share: float) -> None:
    """A picture cut off anywhere is known as such where the format can say it."""
    picture = _encoded(name, **options)
    cut = picture[: max(SNIFF_BYTES, int(len(picture) * share))]
    if len(picture) - len(cut) < TAIL_BYTES:
        cut = picture[:-TAIL_BYTES]

    assert _ended(cut, image_format) is (False if image_format in {JPEG, PNG, WEBP} else None)


@pytest.mark.parametrize(
    ("image_format", "picture", "ended"),
    [
        pytest.param(JPEG, b"\xff\xd8\xff" + b"x" * 200 + b"\xff\xd9", True, id="jpeg_at_the_end"),
        pytest.param(JPEG, b"\xff\xd8\xff" + b"x" * 200 + b"\xff\xd9" + b"\0" * 62, True, id="jpeg_padded"),
        pytest.param(JPEG, b"\xff\xd8\xff\xff\xd9" + b"x" * 200, False, id="jpeg_marker_of_a_thumbnail"),
        pytest.param(JPEG, b"\xff\xd8\xff" + b"x" * 200 + b"\xff", False, id="jpeg_half_a_marker"),
        pytest.param(PNG, b"\x89PNG\r\n\x1a\n" + b"x" * 200 + b"\0\0\0\0IEND\xaeB`", False, id="png_without_last_byte"),
        pytest.param(WEBP, b"RIFF" + (200).to_bytes(4, "little") + b"WEBP" + b"x" * 196, True, id="webp_exact"),
        pytest.param(WEBP, b"RIFF" + (199).to_bytes(4, "little") + b"WEBP" + b"x" * 196, True, id="webp_pad_byte"),
        pytest.param(WEBP, b"RIFF" + (200).to_bytes(4, "little") + b"WEBP" + b"x" * 195, False, id="webp_short"),
        pytest.param(WEBP, b"RIFF" + (200).to_bytes(4, "little") + b"WEBP" + b"x" * 198, False, id="webp_long"),
    ],
)
def test_where_a_picture_ends(image_format: ImageFormat, picture: bytes, *, ended: bool) -> None:
    """The end marker must be at the end, with room for padding; a stated size must be the size."""
    assert _ended(picture, image_format) is ended


@pytest.mark.parametrize(
    ("head", "size"),
    [
        pytest.param(b"RIFF\x10\x27\0\0WEBPVP8 ", 10_008, id="webp"),
        pytest.param(b"RIFF\x10\x27\0\0WAVEfmt ", None, id="sound"),
        pytest.param(b"\xff\xd8\xff\xe0\0\x10JFIF", None, id="jpeg"),
        pytest.param(b"RIFF", None, id="too_short"),
    ],
)
def test_stated_size(head: bytes, size: int | None) -> None:
    """Only a WebP file states its size."""
    assert stated_size(head) == size


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"\0\0\0\x1cftypavis\0\0\0\0avismsf1", id="sequence"),
        pytest.param(b"\0\0\0\x20ftypmif1\0\0\0\0mif1miafavif", id="compatible_brand"),
    ],
)
def test_other_avif_heads(head: bytes) -> None:
    """AVIF may come as a sequence, or with its brand only among the compatible ones."""
    assert sniff(head) is AVIF


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff\xd8", id="half_a_signature"),
        pytest.param(b"\x89PNG", id="half_png"),
        pytest.param(b"<!DOCTYPE html><html><head><title>Sign in</title>", id="html"),
        pytest.param(b'{"error": "not ready", "status": "processing"}', id="json"),
        pytest.param(b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', id="xml"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'>", id="svg"),
        pytest.param(_encoded("GIF")[:SNIFF_BYTES], id="gif"),
        pytest.param(_encoded("BMP")[:SNIFF_BYTES], id="bmp"),
        pytest.param(_encoded("TIFF")[:SNIFF_BYTES], id="tiff"),
        pytest.param(b"%PDF-1.7\n", id="pdf"),
        pytest.param(b"PK\x03\x04" + b"\0" * 28, id="zip"),
        pytest.param(b"\x1f\x8b\x08\0" + b"\0" * 28, id="gzip"),
        pytest.param(b"\n\xff\xd8\xff\xe0", id="blank_line_in_front"),
        pytest.param(b"RIFF\x10\0\0\0WAVEfmt ", id="sound"),
        pytest.param(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", id="heic"),
        pytest.param(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + b"\0" * 40 + b"avif", id="film_that_mentions_avif"),
        pytest.param(b"\0\0\0\x18ftypisomavif", id="version_that_reads_avif"),
        pytest.param(b"\0" * 64, id="zeros"),
    ],
)
def test_what_is_no_picture(head: bytes) -> None:
    """Error pages, documents and pictures of formats that the API does not render are not taken for images."""
    assert sniff(head) is None
