"""Sniffs the format of an image file from its first bytes; ``image_walkers`` finds its end.

An image from the API must have one of the formats that it renders. An upload may also have those of cameras and phones
(the API's page /file-guidelines/formats).
"""

from dataclasses import dataclass

# Enough for the longest signature below (ISO base media: the major brand ends at byte 12) and a few brands more.
SNIFF_BYTES = 32
# A list of brands may be longer; a thousand of them are read.
MAX_SNIFF_BYTES = 4096

JXL_CONTAINER = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
_AVIF_BRANDS = frozenset({b"avif", b"avis"})


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """An image format by the extension of its files, without a dot."""

    extension: str


JPEG = ImageFormat("jpg")
PNG = ImageFormat("png")
WEBP = ImageFormat("webp")
AVIF = ImageFormat("avif")
JXL = ImageFormat("jxl")


def bytes_to_sniff(start: bytes) -> int:
    """Return how many first bytes ``sniff`` needs, by those received so far; at most ``MAX_SNIFF_BYTES``.

    An ISO base media file lists its brands in a first box that states its own size.
    """
    if start[4:8] == b"ftyp":
        return min(max(SNIFF_BYTES, int.from_bytes(start[:4])), MAX_SNIFF_BYTES)
    return SNIFF_BYTES


def sniff(start: bytes) -> ImageFormat | None:
    """Return the format by the first bytes (``bytes_to_sniff``, fewer only at the end), if it is known."""
    if start.startswith(b"\xff\xd8\xff"):
        return JPEG
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return WEBP
    if start[4:8] == b"ftyp" and not _AVIF_BRANDS.isdisjoint(_brands(start)):
        return AVIF
    if start.startswith((b"\xff\x0a", JXL_CONTAINER)):
        return JXL
    return None


def _brands(start: bytes) -> list[bytes]:
    """Return the major and the compatible brands (ISO/IEC 14496-12 section 4.3; the minor version is between them)."""
    end = min(int.from_bytes(start[:4]), len(start), MAX_SNIFF_BYTES)
    return [start[8:12], *(start[at : at + 4] for at in range(16, end, 4))]


# The brands of HEIC and HEIF (ISO/IEC 23008-12 annex B), and of Canon's CR3, which are ISO base media files like AVIF.
_PHOTO_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"crx ")
# TIFF in both byte orders (TIFF 6.0 section 2), which DNG, NEF, ARW, CR2 and most other raw formats are; big TIFF;
# the variants of Olympus and Panasonic; Fujifilm's RAF; Sigma's X3F.
_PHOTO_MAGIC = (
    b"II*\x00",
    b"MM\x00*",
    b"II+\x00",
    b"MM\x00+",
    b"IIRO",
    b"IIRS",
    b"IIU\x00",
    b"FUJIFILMCCD-RAW",
    b"FOVb",
)
PHOTO_SNIFF_BYTES = SNIFF_BYTES


def is_photo(start: bytes) -> bool:
    """Whether the first bytes (``PHOTO_SNIFF_BYTES``) are those of a photo that the API may accept."""
    known = sniff(start)
    if known is not None:
        return known is not JXL
    return start.startswith(_PHOTO_MAGIC) or (start[4:8] == b"ftyp" and start[8:12] in _PHOTO_BRANDS)
