"""Pictures: decodable, of the requested format and size, and deterministic."""

import io
import sys

import pytest
from PIL import Image

from service.sandbox import DEMO_ORDER_ID, LARGE_ORDER_ID, Sandbox, SandboxUnavailableError
from service.sandbox.pictures import PictureRenderer, Scene
from service.sandbox.variants import Variant

SCENE = Scene(seed=7, label="a.jpg")


@pytest.fixture(scope="module")
def renderer() -> PictureRenderer:
    return PictureRenderer()


@pytest.mark.parametrize("format_", ["jpeg", "png", "webp", "avif", "jxl"])
def test_every_format_decodes(renderer: PictureRenderer, format_: str) -> None:
    """A picture has the requested format."""
    if format_ not in renderer.formats:
        pytest.skip("this Pillow cannot write it")
    with Image.open(io.BytesIO(renderer.render(SCENE, Variant(format=format_)))) as picture:
        picture.load()
        assert (picture.format or "").lower() == format_
        assert picture.width == 640


@pytest.mark.parametrize(
    ("variant", "width"),
    [
        (Variant(), 640),
        (Variant(preview=False), 1600),
        (Variant(preview=False, max_width=1000), 1000),
        (Variant(preview=False, max_width=9000), 1600),
        (Variant(preview=False, scale=0.5), 800),
        (Variant(preview=False, scale=0.5, max_width=700), 700),
        (Variant(scale=0.0), 1),
        (Variant(max_width=1), 1),
    ],
)
def test_width_follows_the_variant(renderer: PictureRenderer, variant: Variant, width: int) -> None:
    """Preview, ``max_width`` and ``scale`` determine the width."""
    with Image.open(io.BytesIO(renderer.render(SCENE, variant))) as picture:
        assert picture.width == width


def test_lower_quality_is_smaller(renderer: PictureRenderer) -> None:
    """Lower quality means fewer bytes."""
    sizes = [len(renderer.render(SCENE, Variant(quality=quality))) for quality in (5, 50, 90)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3


def test_watermark_is_drawn_on_request_and_in_dev_mode(renderer: PictureRenderer) -> None:
    """A watermark is drawn on request and always in dev mode."""
    plain = renderer.render(SCENE, Variant())
    assert renderer.render(SCENE, Variant(watermark=False)) == plain
    marked = renderer.render(SCENE, Variant(watermark=True))
    assert marked != plain
    assert renderer.render(SCENE, Variant(dev_mode=True, watermark=False)) == marked


def test_rendering_is_deterministic() -> None:
    """Two renderers draw the same bytes."""
    for format_ in ("jpeg", "png"):
        variant = Variant(format=format_, preview=False)
        assert PictureRenderer().render(SCENE, variant) == PictureRenderer().render(SCENE, variant)


def test_all_images_differ() -> None:
    """No two images of the demo order and of the large order have the same bytes, and the large one's are small."""
    sandbox = Sandbox(seed=3)
    demo = [sandbox.body(image.image_id) for image in sandbox.orders[DEMO_ORDER_ID].images]
    large = [sandbox.body(image.image_id) for image in sandbox.orders[LARGE_ORDER_ID].images]
    assert len({*demo, *large}) == 14 + 1000
    assert max(map(len, large)) < 8 * 1024
    with Image.open(io.BytesIO(large[-1])) as picture:
        picture.load()
    png = [sandbox.body(image.image_id, "png") for image in sandbox.orders[LARGE_ORDER_ID].images[::200]]
    assert len(set(png)) == 5


async def test_start_without_pillow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow the start fails with the name of the extra to install."""
    monkeypatch.delitem(sys.modules, "service.sandbox.pictures", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SandboxUnavailableError, match=r"extra 'sandbox'"):
        await Sandbox().start()
