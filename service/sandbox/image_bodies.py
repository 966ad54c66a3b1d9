"""Finds the body of an image in a variant: given, generated or drawn, the drawn ones kept for a while."""

import asyncio
import functools
import zlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from service.sandbox.bodies import Body, BytesBody, GeneratedBody, PaddedBody
from service.sandbox.state import SandboxImage
from service.sandbox.variants import CONTENT_TYPES, Variant

if TYPE_CHECKING:
    from service.sandbox.pictures import Studio, Subject

# Encoded pictures kept, in bytes: the demo order in all formats and sizes fits.
CACHE_BYTES = 64 * 1024 * 1024
# Generated bodies kept: two megabytes each.
GENERATED_KEPT = 8
# Above this, a body is not put together in memory for a caller.
MAX_BODY_BYTES = 64 * 1024 * 1024
_MAGIC = {
    b"\xff\xd8\xff": "jpeg",
    b"\x89PNG": "png",
    b"RIFF": "webp",
    b"\xff\x0a": "jxl",
    b"\x00\x00\x00\x0cJXL": "jxl",
}


class SandboxUnavailableError(Exception):
    """The sandbox cannot start: what it needs is not installed."""


class Gallery:
    """All bodies, drawn on demand."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._studio: Studio | None = None
        self._cache: OrderedDict[tuple[str, str, Variant], BytesBody] = OrderedDict()
        self._cached_bytes = 0
        # A given body is in memory anyway; what is kept is its entity tag.
        self._given: dict[str, BytesBody] = {}
        self._generated = functools.lru_cache(maxsize=GENERATED_KEPT)(GeneratedBody)

    def open(self) -> None:
        """Load what is needed for drawing.

        Raises:
            SandboxUnavailableError: Pillow is not installed.
        """
        try:
            from service.sandbox.pictures import Studio  # noqa: PLC0415 - Pillow is an extra, the rest works without
        except ModuleNotFoundError as error:
            if error.name != "PIL":
                raise
            raise SandboxUnavailableError(
                "The sandbox draws its pictures with Pillow, which is not installed: "
                "install the extra 'sandbox' (pip install 'autoenhance-batch[sandbox]')."
            ) from error
        self._studio = Studio()

    @property
    def studio(self) -> "Studio":
        """The studio, loaded when it is first needed."""
        if self._studio is None:
            self.open()
        if self._studio is None:  # pragma: no cover - open() sets it or raises
            raise SandboxUnavailableError("no studio")
        return self._studio

    @property
    def formats(self) -> frozenset[str]:
        """The formats which can be asked for."""
        return self.studio.formats

    def content_type(self, image: SandboxImage, variant: Variant) -> str:
        """Return the media type of an image's body."""
        if image.content_type is not None:
            return image.content_type
        if image.body is not None:
            found = next((name for magic, name in _MAGIC.items() if image.body.startswith(magic)), "jpeg")
            return CONTENT_TYPES[found]
        return "image/jpeg" if image.size_bytes is not None else variant.content_type

    def body_now(self, image: SandboxImage, variant: Variant) -> Body:
        """Return the body, drawing it here and now if need be."""
        known = self._known(image, variant)
        return _padded(image, known or self._keep(image, variant, self.studio.render(self._subject(image), variant)))

    async def body(self, image: SandboxImage, variant: Variant) -> Body:
        """Return the body, drawing it in a thread if need be."""
        known = self._known(image, variant)
        if known is None:
            drawn = await asyncio.to_thread(self.studio.render, self._subject(image), variant)
            known = self._keep(image, variant, drawn)
        return _padded(image, known)

    def _known(self, image: SandboxImage, variant: Variant) -> Body | None:
        if image.body is not None:
            given = self._given.get(image.image_id)
            if given is None or given.content is not image.body:
                given = self._given[image.image_id] = BytesBody(image.body)
            return given
        if image.size_bytes is not None:
            return self._generated(image.size_bytes, self._picture_seed(image))
        key = (image.image_id, image.upload_version, variant)
        if key in self._cache:
            self._cache.move_to_end(key)
        return self._cache.get(key)

    def _keep(self, image: SandboxImage, variant: Variant, content: bytes) -> BytesBody:
        key = (image.image_id, image.upload_version, variant)
        if (known := self._cache.get(key)) is not None:
            # Two requests have drawn the same at once.
            return known
        body = self._cache[key] = BytesBody(content)
        self._cached_bytes += body.size
        while self._cached_bytes > CACHE_BYTES:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.size
        return body

    def _subject(self, image: SandboxImage) -> "Subject":
        from service.sandbox.pictures import Subject  # noqa: PLC0415 - see open()

        return Subject(
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
