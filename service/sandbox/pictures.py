"""Draws photo-like pictures and encodes them in every format the API offers.

The rule of this file: the same scene and variant give the same bytes, each time and in each process. Only this module
needs Pillow.
"""

import functools
import io
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps, UnidentifiedImageError, features

from service.sandbox.variants import FULL_WIDTH, Variant

try:
    import pillow_jxl  # noqa: F401 - registers JPEG XL with Pillow
except ImportError:
    _JXL = False
else:
    _JXL = True

# Drawn pictures kept uncompressed for the next format or size: 5 MB each.
MASTERS_KEPT = 6
# Uploads with more pixels are not decoded: a drawn picture replaces them.
UPLOAD_MAX_PIXELS = 64_000_000
_ENHANCEMENT = 1.15
_DEFAULT_QUALITY = 85


@dataclass(frozen=True, slots=True)
class Scene:
    """Content of a picture: a drawn room by its seed, or an uploaded file (``source`` in its ``version``).

    With ``shared``, pictures of one seed differ only in a label: cheap by the thousand.
    """

    seed: int
    label: str
    width: int = FULL_WIDTH
    shared: bool = False
    source: Path | None = None
    version: str = ""


class PictureRenderer:
    """Renders scenes; thread-safe."""

    def __init__(self) -> None:
        self._master = functools.lru_cache(maxsize=MASTERS_KEPT)(_master)
        self._shared_jpeg = functools.lru_cache(maxsize=256)(self._encode_shared)

    @property
    def formats(self) -> frozenset[str]:
        """The formats that this installation of Pillow can encode."""
        optional = {"webp": features.check("webp"), "avif": features.check("avif"), "jxl": _JXL}
        return frozenset({"jpeg", "png"} | {name for name, there in optional.items() if there})

    def render(self, scene: Scene, variant: Variant) -> bytes:
        """Return the encoded picture."""
        if scene.shared and variant.format == "jpeg":
            return _with_comment(self._shared_jpeg(scene.seed, scene.width, variant), scene.label)
        picture = self._master(scene.seed, scene.width, scene.source, scene.version, enhance=not variant.original)
        picture = _resized(picture, variant)
        if scene.shared:
            ImageDraw.Draw(picture).text((4, 4), scene.label, fill="white")
        return _encoded(picture, variant)

    def _encode_shared(self, seed: int, width: int, variant: Variant) -> bytes:
        return _encoded(_resized(self._master(seed, width, None, "", enhance=True), variant), variant)


def _master(
    seed: int,
    width: int,
    source: Path | None,
    version: str,  # noqa: ARG001 - part of the cache's key
    *,
    enhance: bool,
) -> Image.Image:
    uploaded = _upload(source, _ENHANCEMENT if enhance else 1.0) if source is not None else None
    return uploaded or _drawn(random.Random(seed), width)


def _upload(source: Path, brightness: float) -> Image.Image | None:
    try:
        with Image.open(source) as picture:
            if picture.width * picture.height > UPLOAD_MAX_PIXELS:
                return None
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        # Pillow raises all of these for files that it cannot decode.
        return None
    return ImageEnhance.Brightness(upright).enhance(brightness)


def _drawn(rng: random.Random, width: int) -> Image.Image:
    """Draw a room: lit wall and floor, a window with a view, furniture, and grain as a camera adds it."""
    height = width * 2 // 3
    horizon = int(height * rng.uniform(0.55, 0.72))
    picture = Image.new("RGB", (width, height))
    picture.paste(_gradient(rng, width, horizon), (0, 0))
    picture.paste(_gradient(rng, width, height - horizon), (0, horizon))
    draw = ImageDraw.Draw(picture)
    _window(draw, rng, width, horizon)
    for _ in range(rng.randint(2, 4)):
        _furniture(draw, rng, width, height, horizon)
    grain = Image.frombytes("L", (width, height), rng.randbytes(width * height)).convert("RGB")
    return Image.blend(picture, grain, 0.05)


def _gradient(rng: random.Random, width: int, height: int) -> Image.Image:
    dark, light = _colour(rng, 60, 140), _colour(rng, 150, 245)
    ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((width, max(1, height)))
    return ImageOps.colorize(ramp, dark, light)


def _window(draw: ImageDraw.ImageDraw, rng: random.Random, width: int, horizon: int) -> None:
    left, top = int(width * rng.uniform(0.08, 0.5)), int(horizon * rng.uniform(0.1, 0.25))
    right, bottom = left + int(width * rng.uniform(0.2, 0.35)), int(horizon * rng.uniform(0.6, 0.8))
    draw.rectangle((left, top, right, bottom), fill=(170, 205, rng.randint(225, 255)), outline="white", width=6)
    hill = (left + 6, (top + bottom) // 2, right - 6, bottom + (bottom - top) // 3)
    draw.chord(hill, 180, 360, fill=(70, rng.randint(110, 160), 70))
    draw.line(((left + right) // 2, top, (left + right) // 2, bottom), fill="white", width=5)


def _furniture(draw: ImageDraw.ImageDraw, rng: random.Random, width: int, height: int, horizon: int) -> None:
    left = rng.randint(0, width * 4 // 5)
    right = left + int(width * rng.uniform(0.1, 0.3))
    top = horizon - int(height * rng.uniform(0.02, 0.2))
    bottom = horizon + int(height * rng.uniform(0.05, 0.25))
    box = (left, top, right, max(top + 2, bottom))
    if rng.random() < 0.3:  # noqa: PLR2004 - lamps are rarer than cupboards
        draw.ellipse(box, fill=_colour(rng, 190, 250))
    else:
        draw.rounded_rectangle(box, radius=max(1, width // 80), fill=_colour(rng, 40, 190))


def _colour(rng: random.Random, low: int, high: int) -> tuple[int, int, int]:
    return rng.randint(low, high), rng.randint(low, high), rng.randint(low, high)


def _resized(master: Image.Image, variant: Variant) -> Image.Image:
    width = variant.width(master.width)
    height = max(1, round(master.height * width / master.width))
    picture = master.copy() if width == master.width else master.resize((width, height), Image.Resampling.BILINEAR)
    if variant.watermarked:
        _watermark(picture)
    return picture


def _watermark(picture: Image.Image) -> None:
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(8, picture.width // 14))
    for third in (1, 2):
        centre = (picture.width // 2, picture.height * third // 3)
        draw.text(
            centre, "SANDBOX · NOT PAID", font=font, fill="white", anchor="mm", stroke_width=1, stroke_fill="grey"
        )


def _encoded(picture: Image.Image, variant: Variant) -> bytes:
    quality = variant.quality or _DEFAULT_QUALITY
    # The fastest setting of each encoder: pictures are encoded while a client waits.
    options: Mapping[str, Mapping[str, int]] = {
        "jpeg": {"quality": quality},
        "png": {"compress_level": 1},
        "webp": {"quality": quality, "method": 1},
        "avif": {"quality": quality, "speed": 10, "max_threads": 1},
        "jxl": {"quality": quality, "effort": 3},
    }
    out = io.BytesIO()
    picture.save(out, variant.format, **options[variant.format])
    return out.getvalue()


def _with_comment(jpeg: bytes, text: str) -> bytes:
    # A COM segment (ITU-T T.81, B.2.4.5) right behind the start-of-image marker.
    comment = text.encode()[:1000]
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
