"""Pictures: decodable, of the asked format and size, and the same each time."""

import io
import sys

import pytest
from PIL import Image

from service.sandbox import DEMO_ORDER_ID, LARGE_ORDER_ID, Sandbox, SandboxUnavailableError
from service.sandbox.pictures import Studio, Subject
from service.sandbox.variants import Variant

SUBJECT = Subject(seed=7, label="a.jpg")


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio()


@pytest.mark.parametrize("format_", ["jpeg", "png", "webp", "avif", "jxl"])
def test_every_format_decodes(studio: Studio, format_: str) -> None:
    """A picture is really of the format that was asked for."""
    if format_ not in studio.formats:
        pytest.skip("this Pillow cannot write it")
    with Image.open(io.BytesIO(studio.render(SUBJECT, Variant(format=format_)))) as picture:
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
def test_sizes(studio: Studio, variant: Variant, width: int) -> None:
    """Preview, width and scale are honoured."""
    with Image.open(io.BytesIO(studio.render(SUBJECT, variant))) as picture:
        assert picture.width == width


def test_quality_changes_the_size(studio: Studio) -> None:
    """Lower quality means fewer bytes."""
    sizes = [len(studio.render(SUBJECT, Variant(quality=quality))) for quality in (5, 50, 90)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3


def test_watermarks(studio: Studio) -> None:
    """A watermark is drawn on request and always in dev mode."""
    plain = studio.render(SUBJECT, Variant())
    assert studio.render(SUBJECT, Variant(watermark=False)) == plain
    marked = studio.render(SUBJECT, Variant(watermark=True))
    assert marked != plain
    assert studio.render(SUBJECT, Variant(dev_mode=True, watermark=False)) == marked


def test_rendering_is_deterministic() -> None:
    """Two studios draw the same bytes."""
    for format_ in ("jpeg", "png"):
        variant = Variant(format=format_, preview=False)
        assert Studio().render(SUBJECT, variant) == Studio().render(SUBJECT, variant)


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


async def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting without Pillow fails with words that help."""
    monkeypatch.delitem(sys.modules, "service.sandbox.pictures", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SandboxUnavailableError, match=r"extra 'sandbox'"):
        await Sandbox().start()
