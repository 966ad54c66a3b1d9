"""Sniffing of image formats, on files of real encoders."""

import io

import pytest
from PIL import Image, features

from service.upstream.image_formats import (
    AVIF,
    JPEG,
    JXL,
    MAX_SNIFF_BYTES,
    PNG,
    SNIFF_BYTES,
    WEBP,
    ImageFormat,
    bytes_to_sniff,
    sniff,
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


@pytest.mark.parametrize(("name", "options", "image_format"), FORMATS)
def test_format_is_sniffed_from_the_first_bytes(
    name: str, options: dict[str, object], image_format: ImageFormat
) -> None:
    """The first bytes are enough, and more of them change nothing."""
    picture = _encoded(name, **options)

    assert sniff(picture[:SNIFF_BYTES]) is image_format
    assert sniff(picture) is image_format


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"\0\0\0\x1cftypavis\0\0\0\0avismsf1", id="sequence"),
        pytest.param(b"\0\0\0\x20ftypmif1\0\0\0\0mif1miafavif", id="compatible_brand"),
        pytest.param(b"\0\0\0\x24ftypmif1\0\0\0\0mif1miafMA1Bmiafavif", id="fifth_brand"),
        pytest.param(b"\0\0\x10\0ftypmif1\0\0\0\0" + b"junk" * 1019 + b"avif", id="last_brand_that_is_read"),
    ],
)
def test_avif_brand_may_be_anywhere_in_the_list(start: bytes) -> None:
    """AVIF may be a sequence, or have its brand among the compatible ones, at any position."""
    assert sniff(start[: bytes_to_sniff(start[:SNIFF_BYTES])]) is AVIF


def test_list_of_brands_is_bounded() -> None:
    """No more than a file's first box is sniffed, and of a huge box a bounded part."""
    assert bytes_to_sniff(b"\0\0\0\x64ftypmif1") == 0x64
    assert bytes_to_sniff(b"\xff\xff\xff\xffftypmif1") == MAX_SNIFF_BYTES
    assert bytes_to_sniff(b"\0\0\0\0ftypmif1") == bytes_to_sniff(b"") == SNIFF_BYTES


@pytest.mark.parametrize(
    "start",
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
        pytest.param(b"\0\0\0\x1cftypisom\0\0\0\0isavifom", id="brands_that_read_avif_together"),
        pytest.param(b"\0" * 64, id="zeros"),
    ],
)
def test_other_content_is_no_image(start: bytes) -> None:
    """Error pages, documents and images of formats that the API does not render are rejected."""
    assert sniff(start) is None
