"""Provides the body of an image in a variant: its own bytes, generated, or drawn and cached."""

import asyncio
import functools
import zlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from service.sandbox.bodies import Body, BytesBody, GeneratedBody, PaddedBody
from service.sandbox.state import SandboxImage
from service.sandbox.variants import CONTENT_TYPES, Variant

if TYPE_CHECKING:
    from service.sandbox.pictures import PictureRenderer, Scene

# Encoded pictures kept, in bytes: the demo order in all formats and sizes fits.
CACHE_BYTES = 64 * 1024 * 1024
# Generated bodies kept: two megabytes each.
GENERATED_KEPT = 8
# Larger bodies are not joined in memory.
MAX_BODY_BYTES = 64 * 1024 * 1024
_MAGIC = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG": "png",
    b"RIFF": "webp",
    b"\xff\x0a": "jxl",
    b"\x00\x00\x00\x0cJXL": "jxl",
}


class SandboxUnavailableError(Exception):
    """The sandbox cannot start: a package that it needs is not installed."""


class ImageBodies:
    """Bodies of all images, drawn on demand."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._renderer: PictureRenderer | None = None
        self._cache: OrderedDict[tuple[str, str, Variant], BytesBody] = OrderedDict()
        self._cached_bytes = 0
        # An image's own bytes are in memory anyway; this caches their entity tag.
        self._own: dict[str, BytesBody] = {}
        self._generated = functools.lru_cache(maxsize=GENERATED_KEPT)(GeneratedBody)

    def open(self) -> None:
        """Import Pillow.

        Raises:
            SandboxUnavailableError: Pillow is not installed.
        """
        try:
            from service.sandbox.pictures import PictureRenderer  # noqa: PLC0415 - Pillow is an extra, the rest works without
        except ModuleNotFoundError as error:
            if error.name != "PIL":
                raise
            raise SandboxUnavailableError(
                "The sandbox draws its pictures with Pillow, which is not installed: "
                "install the extra 'sandbox' (pip install 'autoenhance-batch[sandbox]')."
            ) from error
        self._renderer = PictureRenderer()

    @property
    def renderer(self) -> "PictureRenderer":
        """The renderer, created on first use."""
        if self._renderer is None:
            self.open()
        if self._renderer is None:  # pragma: no cover - open() sets it or raises
            raise SandboxUnavailableError("no renderer")
        return self._renderer

    @property
    def formats(self) -> frozenset[str]:
        """The supported formats."""
        return self.renderer.formats

    def content_type(self, image: SandboxImage, variant: Variant) -> str:
        """Return the media type of an image's body."""
        if image.content_type is not None:
            return image.content_type
        if image.body is not None:
            found = next((name for magic, name in _MAGIC.items() if image.body.startswith(magic)), "jpeg")
            return CONTENT_TYPES[found]
        return "image/jpeg" if image.size_bytes is not None else variant.content_type

    def body_blocking(self, image: SandboxImage, variant: Variant) -> Body:
        """Return the body; draw it in this thread if it is not cached."""
        cached = self._cached(image, variant)
        return _padded(image, cached or self._keep(image, variant, self.renderer.render(self._scene(image), variant)))

    async def body(self, image: SandboxImage, variant: Variant) -> Body:
        """Return the body; draw it in a worker thread if it is not cached."""
        cached = self._cached(image, variant)
        if cached is None:
            drawn = await asyncio.to_thread(self.renderer.render, self._scene(image), variant)
            cached = self._keep(image, variant, drawn)
        return _padded(image, cached)

    def _cached(self, image: SandboxImage, variant: Variant) -> Body | None:
        if image.body is not None:
            own = self._own.get(image.image_id)
            if own is None or own.content is not image.body:
                own = self._own[image.image_id] = BytesBody(image.body)
            return own
        if image.size_bytes is not None:
            return self._generated(image.size_bytes, self._picture_seed(image))
        key = (image.image_id, image.upload_version, variant)
        if key in self._cache:
            self._cache.move_to_end(key)
        return self._cache.get(key)

    def _keep(self, image: SandboxImage, variant: Variant, content: bytes) -> BytesBody:
        key = (image.image_id, image.upload_version, variant)
        if (cached := self._cache.get(key)) is not None:
            # Two concurrent requests drew the same picture.
            return cached
        body = self._cache[key] = BytesBody(content)
        self._cached_bytes += body.size
        while self._cached_bytes > CACHE_BYTES:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.size
        return body

    def _scene(self, image: SandboxImage) -> "Scene":
        from service.sandbox.pictures import Scene  # noqa: PLC0415 - see open()

        return Scene(
            seed=self._picture_seed(image),
            label=f"{image.name} {image.image_id}",
            width=image.width,
            shared=image.picture_seed is not None,
            source=image.upload,
            version=image.upload_version,
        )

    def _picture_seed(self, image: SandboxImage) -> int:
        if image.picture_seed is not None:
            return self._seed + image.picture_seed
        return self._seed + zlib.crc32(image.image_id.encode())


def _padded(image: SandboxImage, body: Body) -> Body:
    return PaddedBody(body, image.padding_bytes) if image.padding_bytes else body
