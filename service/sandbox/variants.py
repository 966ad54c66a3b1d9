"""Variants of an image: format, size, quality, preview. No Pillow."""

from dataclasses import dataclass

CONTENT_TYPES = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "avif": "image/avif",
    "jxl": "image/jxl",
}
FULL_WIDTH = 1600
PREVIEW_WIDTH = 640


@dataclass(frozen=True, slots=True)
class Variant:
    """One rendering of an image; equal variants of one image are the same bytes.

    ``original`` is the picture before its enhancement.
    """

    format: str = "jpeg"
    quality: int | None = None
    preview: bool = True
    dev_mode: bool = False
    max_width: int | None = None
    scale: float | None = None
    watermark: bool | None = None
    original: bool = False

    @property
    def content_type(self) -> str:
        """The media type of the format."""
        return CONTENT_TYPES[self.format]

    @property
    def watermarked(self) -> bool:
        """Whether a watermark is drawn: on request, and always in dev mode, as nothing was paid."""
        return self.dev_mode or bool(self.watermark)

    @property
    def buys(self) -> bool:
        """Whether a request for this variant spends a credit."""
        return not (self.preview or self.dev_mode or self.original)

    def width(self, full: int) -> int:
        """Return the width in pixels of this variant of a picture that is ``full`` pixels wide."""
        width = min(full, PREVIEW_WIDTH) if self.preview else full
        if self.scale is not None:
            width = round(width * self.scale)
        if self.max_width is not None:
            width = min(width, self.max_width)
        return max(1, width)
