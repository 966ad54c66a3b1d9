"""From query and order to the plan: every parameter's edges, and what an order's state means for the archive."""

import uuid
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.archive.plan import (
    NOT_READY_RETRY_SECONDS,
    PARAMETERS,
    ArchiveOptions,
    ManifestMode,
    OnError,
    check_order_id,
    parse_options,
    plan_archive,
)
from service.archive.writer import Layout
from service.errors import (
    ImageNotInOrder,
    InvalidOrderId,
    InvalidParameter,
    NoImagesAvailable,
    OrderEmpty,
    OrderNotReady,
    RepeatedParameter,
    TooManyImages,
    UnknownParameter,
)
from service.model import Image, ImageOptions, Order, Readiness, Reason

ORDER_ID = "3f2b8c1e-5d4a-4e6f-9a7b-0c1d2e3f4a5b"

UUID = "3f2b8c1e-5d4a-4e6f-9a7b-0c1d2e3f4a5b"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(ORDER_ID, id="usual"),
        pytest.param(ORDER_ID.upper(), id="capitals"),
        pytest.param("00000000-0000-0000-0000-000000000000", id="nil"),
        pytest.param("ffffffff-ffff-ffff-ffff-ffffffffffff", id="max"),
    ],
)
def test_order_id(text: str) -> None:
    """A UUID in its usual form is taken as it is, whatever its version."""
    assert check_order_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("villa-rosa", id="name"),
        pytest.param(ORDER_ID.replace("-", ""), id="without_dashes"),
        pytest.param(f"{{{ORDER_ID}}}", id="braces"),
        pytest.param(f"urn:uuid:{ORDER_ID}", id="urn"),
        pytest.param(f"{ORDER_ID}\n", id="trailing_newline"),
        pytest.param(f" {ORDER_ID}", id="leading_space"),
        pytest.param(f"{ORDER_ID}\0", id="nul"),
        pytest.param(f"{ORDER_ID}/..", id="parent"),
        pytest.param(f"../{ORDER_ID}", id="parent_in_front"),
        pytest.param(f"{ORDER_ID}?preview=false", id="query"),
        pytest.param(f"{ORDER_ID}%00", id="escape"),
        pytest.param(ORDER_ID[:-1], id="too_short"),
        pytest.param(ORDER_ID + "0", id="too_long"),
        pytest.param(ORDER_ID[:-1] + "g", id="no_hex_digit"),
        pytest.param(ORDER_ID.replace("3", "\u0663"), id="digits_of_another_script"),
        pytest.param(ORDER_ID.replace("3", "\uff13"), id="wide_digits"),
        pytest.param(ORDER_ID.replace("-", "\u2010"), id="other_dashes"),
    ],
)
def test_what_is_no_order_id(text: str) -> None:
    """Anything else is refused before the upstream is asked."""
    with pytest.raises(InvalidOrderId):
        check_order_id(text)


@given(st.uuids())
def test_every_uuid_is_an_order_id(order_id: uuid.UUID) -> None:
    """No version or variant is preferred."""
    assert check_order_id(str(order_id)) == str(order_id)


def test_defaults() -> None:
    """Without parameters the archive is a free preview of all images, and failures are reported."""
    assert parse_options([]) == ArchiveOptions(
        image=ImageOptions(format="jpeg", quality=None, preview=True, dev_mode=False),
        only=(),
        on_error=OnError.REPORT,
        manifest=ManifestMode.AUTO,
        layout=Layout.STREAMABLE,
    )


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        *[pytest.param("format", f, ImageOptions(format=f), id=f) for f in ("jpeg", "png", "webp", "avif", "jxl")],
        pytest.param("quality", "1", ImageOptions(quality=1), id="quality_least"),
        pytest.param("quality", "90", ImageOptions(quality=90), id="quality_most"),
        pytest.param("quality", "07", ImageOptions(quality=7), id="quality_leading_zero"),
        pytest.param("preview", "true", ImageOptions(preview=True), id="preview"),
        pytest.param("preview", "false", ImageOptions(preview=False), id="no_preview"),
        pytest.param("preview", "FALSE", ImageOptions(preview=False), id="no_preview_capitals"),
        pytest.param("dev_mode", "True", ImageOptions(dev_mode=True), id="dev_mode"),
        pytest.param("max_width", "1", ImageOptions(max_width=1), id="max_width_least"),
        pytest.param("max_width", "65535", ImageOptions(max_width=65_535), id="max_width_most"),
        pytest.param("scale", "1", ImageOptions(scale=1.0), id="scale_one"),
        pytest.param("scale", "1.000", ImageOptions(scale=1.0), id="scale_one_with_zeros"),
        pytest.param("scale", "0.5", ImageOptions(scale=0.5), id="scale_half"),
        pytest.param("scale", "0.000000001", ImageOptions(scale=1e-9), id="scale_least"),
        pytest.param("watermark", "false", ImageOptions(watermark=False), id="no_watermark"),
        pytest.param("watermark", "true", ImageOptions(watermark=True), id="watermark"),
        pytest.param("finetune", "true", ImageOptions(finetune=True), id="finetune"),
    ],
)
def test_image_parameter(name: str, text: str, options: ImageOptions) -> None:
    """One parameter changes one option and nothing else."""
    assert parse_options([(name, text)]) == ArchiveOptions(image=options)


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        pytest.param("on_error", "abort", ArchiveOptions(on_error=OnError.ABORT), id="abort"),
        pytest.param("on_error", "report", ArchiveOptions(on_error=OnError.REPORT), id="report"),
        pytest.param("manifest", "always", ArchiveOptions(manifest=ManifestMode.ALWAYS), id="always"),
        pytest.param("manifest", "auto", ArchiveOptions(manifest=ManifestMode.AUTO), id="auto"),
        pytest.param("layout", "streamable", ArchiveOptions(layout=Layout.STREAMABLE), id="streamable"),
        pytest.param("layout", "stored", ArchiveOptions(layout=Layout.STORED), id="stored"),
        pytest.param("max_credits", "0", ArchiveOptions(max_credits=0), id="no_credits"),
        pytest.param("max_credits", "1000000", ArchiveOptions(max_credits=1_000_000), id="most_credits"),
        pytest.param("archive_id", UUID.upper(), ArchiveOptions(archive_id=UUID), id="archive_id"),
        pytest.param("only", "a-1", ArchiveOptions(only=("a-1",)), id="only"),
    ],
)
def test_archive_parameter(name: str, text: str, options: ArchiveOptions) -> None:
    """What concerns the archive as a whole is not an image option."""
    assert parse_options([(name, text)]) == options


@pytest.mark.parametrize(
    ("preview", "dev_mode", "spends"),
    [("true", "false", False), ("true", "true", False), ("false", "true", False), ("false", "false", True)],
)
def test_only_full_quality_spends_credits(preview: str, dev_mode: str, *, spends: bool) -> None:
    """Credits are bought by ``preview=false`` without ``dev_mode``, and by nothing else."""
    options = parse_options([("preview", preview), ("dev_mode", dev_mode)])
    assert options.image.spends_credits is spends


BAD_WORDS = ["", " ", "JPEG", "jpg", "jpeg ", "gif", "jpeg,png", "jpeg\n"]
BAD_FLAGS = ["", "1", "0", "yes", "no", "on", "off", "null", " true", "true\n", "tru", "t"]
BAD_NUMBERS = ["", "0", "-1", "+1", "1.0", "1e1", "0x10", " 1", "1 ", "1_0", "\u0661", "\u00b2", "nan", "9" * 5000]
BAD_SCALES = ["", "0", "0.0", "-0.5", "1.1", "2", ".5", "1.", "+0.5", "5e-1", "nan", "inf", "1,0", "\u0660.5", "0.5\n"]
BAD_SCALES += ["1.0000000001", "0." + "0" * 5000 + "1"]
BAD_VALUES = {
    "format": BAD_WORDS,
    "quality": [*BAD_NUMBERS, "91", "100"],
    "preview": BAD_FLAGS,
    "dev_mode": BAD_FLAGS,
    "max_width": [*BAD_NUMBERS, "65536"],
    "scale": BAD_SCALES,
    "watermark": BAD_FLAGS,
    "finetune": BAD_FLAGS,
    "on_error": ["", "ignore", "REPORT", "abort "],
    "manifest": ["", "never", "AUTO", "true"],
    "layout": ["", "STORED", "deflate", "true", "streamable "],
    "max_credits": ["", "-1", "1000001", "1.0", "all", " 1"],
    "archive_id": ["", "mine", UUID + "0", "{" + UUID + "}", UUID.replace("-", "")],
    "wait": ["", "-1", "86401", "1.5", "10s", " 1"],
    "only": ["", "a\nb", "a\0", "\u202e"],
}


@pytest.mark.parametrize(
    ("name", "text"),
    [pytest.param(name, text, id=f"{name}-{text[:12]!a}") for name, texts in BAD_VALUES.items() for text in texts],
)
def test_bad_value(name: str, text: str) -> None:
    """A value out of range is refused with the parameter's name; it is never corrected or ignored."""
    with pytest.raises(InvalidParameter) as caught:
        parse_options([(name, text)])

    assert type(caught.value) is InvalidParameter
    assert caught.value.extensions == {"parameter": name}
    assert repr(name) in caught.value.detail


def test_every_parameter_is_tried_with_bad_values() -> None:
    """A new parameter cannot be forgotten in the table above."""
    assert set(BAD_VALUES) == set(PARAMETERS)


@pytest.mark.parametrize(
    "name", ["previw", "Preview", "PREVIEW", "preview ", "", "only[]", "x" * 1000, "prev\u0131ew", "api_key"]
)
def test_unknown_parameter(name: str) -> None:
    """A misspelt name is refused, so that a misspelt ``preview`` never buys images."""
    with pytest.raises(UnknownParameter) as caught:
        parse_options([("format", "png"), (name, "false")])

    assert caught.value.extensions == {"parameter": name}
    assert "preview" in caught.value.detail


@pytest.mark.parametrize("name", sorted(set(PARAMETERS) - {"only"}))
def test_repeated_parameter(name: str) -> None:
    """A parameter given twice is refused, even with the same value: which one was meant?"""
    texts = {"format": "png", "quality": "5", "max_width": "5", "scale": "0.5"}
    texts |= {
        "on_error": "abort",
        "manifest": "auto",
        "layout": "stored",
        "max_credits": "1",
        "archive_id": UUID,
        "wait": "1",
    }
    text = texts.get(name, "true")
    with pytest.raises(RepeatedParameter) as caught:
        parse_options([(name, text), (name, text)])

    assert caught.value.extensions == {"parameter": name}


def test_only_may_repeat() -> None:
    """``only`` collects its ids in the order given, each once."""
    assert parse_options([("only", "b"), ("format", "png"), ("only", "a"), ("only", "b")]).only == ("b", "a")


READY = Readiness.READY


def _order(*images: tuple[str, str] | tuple[str, str, Readiness], busy: bool = False) -> Order:
    return Order(ORDER_ID, "Villa Rosa", busy, [_image(*image) for image in images])


def _image(image_id: str, name: str, readiness: Readiness = READY, reason: str | None = None) -> Image:
    return Image(image_id, name, readiness, status_reason=reason)


def _stems(order: Order, *only: str) -> Sequence[tuple[int, str, str]]:
    plan = plan_archive(order, ArchiveOptions(only=only), max_images=100)
    return [(item.position, item.image.image_id, item.stem) for item in plan.ready]


SAME_NAMES = _order(("a", "room.jpg"), ("b", "room.jpg"), ("c", "hall.jpg"), ("d", "ROOM.png"))


def test_plan_names_every_image_of_an_order() -> None:
    """Every image gets a unique name, in the order's order."""
    assert _stems(SAME_NAMES) == [(0, "a", "room"), (1, "b", "room_2"), (2, "c", "hall"), (3, "d", "ROOM_3")]


@pytest.mark.parametrize("only", [["b", "d"], ["d", "b"]], ids=["in_order", "reversed"])
def test_subset_has_the_names_of_the_full_archive(only: list[str]) -> None:
    """Images of a repeated request have the names that they would have had in the first archive."""
    assert _stems(SAME_NAMES, *only) == [(1, "b", "room_2"), (3, "d", "ROOM_3")]


def test_unknown_image_id_is_rejected_by_name() -> None:
    """The error names the first id of ``only`` that the order does not have."""
    with pytest.raises(ImageNotInOrder) as caught:
        _stems(SAME_NAMES, "a", "A", "zzz")

    assert caught.value.extensions == {"parameter": "only", "image_id": "A"}
    assert "'A'" in caught.value.detail


def test_image_without_an_id_cannot_be_selected() -> None:
    """An image without an id takes part in names and outcomes, but is in no subset."""
    order = _order(("", "room.jpg", Readiness.FAILED), ("b", "room.jpg"))
    plan = plan_archive(order, ArchiveOptions(), max_images=100)

    assert [outcome.position for outcome in plan.failures] == [0]
    assert _stems(order, "b") == [(1, "b", "room_2")]


@pytest.mark.parametrize(("max_images", "only", "fits"), [(4, [], True), (3, [], False), (2, ["a", "b"], True)])
def test_max_images_limits_the_selection(max_images: int, only: list[str], *, fits: bool) -> None:
    """The limit counts requested images, not those of the order: a large order can be downloaded in parts."""
    options = ArchiveOptions(only=tuple(only))
    if fits:
        assert plan_archive(SAME_NAMES, options, max_images=max_images).total == (len(only) or 4)
        return
    with pytest.raises(TooManyImages) as caught:
        plan_archive(SAME_NAMES, options, max_images=max_images)
    assert caught.value.extensions == {"images": 4, "max_images": 3}
    assert "only" in caught.value.detail


def test_empty_order_is_not_found() -> None:
    """An order without images is a 404: it will not get any."""
    with pytest.raises(OrderEmpty) as caught:
        plan_archive(_order(), ArchiveOptions(), max_images=100)
    assert caught.value.status == 404


def test_busy_order_without_images_is_a_conflict() -> None:
    """An order that is still being merged or processed is a 409 with a time to retry."""
    with pytest.raises(OrderNotReady) as caught:
        plan_archive(_order(busy=True), ArchiveOptions(only=("a",)), max_images=100)
    assert caught.value.status == 409
    assert caught.value.retry_after_seconds == NOT_READY_RETRY_SECONDS


MIXED = Order(
    ORDER_ID,
    "Villa Rosa",
    busy=True,
    images=[
        _image("a", "a.jpg", Readiness.NOT_READY),
        _image("b", "b.jpg"),
        _image("c", "c.jpg", Readiness.FAILED, "too dark"),
        _image("d", "d.jpg", Readiness.EXPIRED),
        _image("e", "e.jpg"),
    ],
)


def test_unavailable_images_have_an_outcome_from_the_start() -> None:
    """They are not requested; their outcome has the position, the reason and the upstream's own detail."""
    plan = plan_archive(MIXED, ArchiveOptions(), max_images=100)

    assert [item.image.image_id for item in plan.ready] == ["b", "e"]
    assert plan.total == 5
    assert [
        (outcome.position, outcome.image.image_id, outcome.failure.reason, outcome.failure.detail)
        for outcome in plan.failures
        if outcome.failure
    ] == [
        (0, "a", Reason.NOT_READY, "The image is not processed yet."),
        (2, "c", Reason.PROCESSING_FAILED, "Autoenhance could not process the image: too dark"),
        (3, "d", Reason.EXPIRED, "Autoenhance no longer keeps the image."),
    ]
    assert {(outcome.attempts, outcome.entry) for outcome in plan.failures} == {(0, None)}


@pytest.mark.parametrize("readiness", [Readiness.NOT_READY, Readiness.FAILED, Readiness.EXPIRED])
def test_order_without_a_ready_image_lists_every_failure(readiness: Readiness) -> None:
    """Where no image is available, the error lists the reason of each."""
    order = _order(("a", "a.jpg", readiness), ("b", "b.jpg", readiness), busy=True)
    with pytest.raises(NoImagesAvailable) as caught:
        plan_archive(order, ArchiveOptions(), max_images=100)

    assert [failure["image_id"] for failure in caught.value.extensions["failures"]] == ["a", "b"]


def test_subset_without_a_ready_image_is_rejected() -> None:
    """Only requested images count, not ready ones outside of the subset."""
    with pytest.raises(NoImagesAvailable) as caught:
        plan_archive(MIXED, ArchiveOptions(only=("c",)), max_images=100)

    assert [failure["reason"] for failure in caught.value.extensions["failures"]] == ["processing_failed"]


def test_on_error_abort_rejects_a_plan_with_a_missing_image() -> None:
    """With ``on_error=abort`` an image known to be missing is an error status before the first byte."""
    abort = ArchiveOptions(on_error=OnError.ABORT)
    with pytest.raises(NoImagesAvailable) as caught:
        plan_archive(MIXED, abort, max_images=100)
    assert [failure["image_id"] for failure in caught.value.extensions["failures"]] == ["a", "c", "d"]

    whole = plan_archive(MIXED, ArchiveOptions(on_error=OnError.ABORT, only=("b", "e")), max_images=100)
    assert [item.image.image_id for item in whole.ready] == ["b", "e"]
