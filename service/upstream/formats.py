"""What a picture file looks like: its first bytes, and its last.

What comes from the API must have one of the formats that it renders. What goes there may also be what cameras and
phones make (its page /file-guidelines/formats).
"""

from dataclasses import dataclass

# Enough for the longest signature below (ISO base media: the brand ends at byte 12) with room for a longer ftyp box.
SNIFF_BYTES = 32
# Where the end marker must be found. Some encoders pad behind it, hence more than the marker's own length.
TAIL_BYTES = 64

_AVIF_BRANDS = (b"avif", b"avis")
_JXL_CONTAINER = b"\x00\x00\x00\x0cJXL \r\n\x87\n"


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """A picture format: its extension without a dot, and the marker that ends a complete file, if it has one."""

    extension: str
    end_marker: bytes | None


JPEG = ImageFormat("jpg", b"\xff\xd9")  # ITU T.81 B.1.1.3: EOI
PNG = ImageFormat("png", b"IEND\xaeB`\x82")  # PNG 11.2.5 with its CRC
WEBP = ImageFormat("webp", None)
AVIF = ImageFormat("avif", None)
JXL = ImageFormat("jxl", None)


def sniff(head: bytes) -> ImageFormat | None:
    """Return the format that the first bytes (``SNIFF_BYTES``, fewer only at the end) announce, if any."""
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    brands = head[8:12] + head[16:SNIFF_BYTES]  # ISO/IEC 14496-12 section 4.3: major, (minor version), compatible
    if head[4:8] == b"ftyp" and any(brand in brands for brand in _AVIF_BRANDS):
        return AVIF
    if head.startswith((b"\xff\x0a", _JXL_CONTAINER)):
        return JXL
    return None


def stated_size(head: bytes) -> int | None:
    """Return the file size in bytes which the first bytes themselves state (WebP's RIFF header), if they do."""
    if sniff(head) is WEBP:
        return int.from_bytes(head[4:8], "little") + 8
    return None


def has_ended(image_format: ImageFormat, head: bytes, tail: bytes, size: int) -> bool | None:
    """Tell by the file itself whether it is complete; ``None`` where its format cannot say.

    ``tail`` holds the last ``TAIL_BYTES``, ``size`` the number of bytes in all.
    """
    stated = stated_size(head)
    if stated is not None:
        # RIFF pads chunks to even sizes: the byte may be counted or not.
        return size in {stated, stated + 1}
    if image_format.end_marker is None:
        return None
    return image_format.end_marker in tail[-TAIL_BYTES:]


# The brands of HEIC and HEIF (ISO/IEC 23008-12 annex B), and of Canon's CR3, which are ISO base media files like AVIF.
_PHOTO_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"crx ")
# TIFF in both byte orders (TIFF 6.0 section 2), which DNG, NEF, ARW, CR2 and most other raw formats are; big TIFF;
# Olympus' and Panasonic's own kinds of it; Fujifilm's RAF; Sigma's X3F.
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
PHOTO_HEAD_BYTES = SNIFF_BYTES


def is_photo(head: bytes) -> bool:
    """Whether the first bytes (``PHOTO_HEAD_BYTES``) are those of a photo that the API may take."""
    known = sniff(head)
    if known is not None:
        return known is not JXL
    return head.startswith(_PHOTO_MAGIC) or (head[4:8] == b"ftyp" and head[8:12] in _PHOTO_BRANDS)
