"""Payloads of the API: parsed tolerantly where possible, rejected otherwise."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model import Image, Order, Readiness
from service.upstream.payloads import MAX_NAME_CHARACTERS, PayloadError, read_order

READY, NOT_READY, FAILED, EXPIRED = Readiness.READY, Readiness.NOT_READY, Readiness.FAILED, Readiness.EXPIRED


def _order(**fields: Any) -> Order:
    return read_order("order-1", json.dumps(fields).encode())


def _image(*, order: dict[str, Any] | None = None, **fields: Any) -> Image:
    (image,) = _order(**{"images": [{"image_id": "a", **fields}], **(order or {})}).images
    return image


def test_order_as_the_api_documents_it() -> None:
    """Known fields are parsed, all others ignored."""
    order = _order(
        order_id="order-1",
        name="Villa Rosa",
        status="processed",
        is_processing=False,
        is_merging=False,
        is_deleted=False,
        total_images=2,
        created_at="2026-01-02T03:04:05.678901",
        images=[
            {
                "image_id": "a",
                "image_name": "kitchen.jpg",
                "status": "processed",
                "status_reason": None,
                "downloaded": True,
                "enhance_type": "property",
                "metadata": {"brackets": [1, 2, 3]},
            },
            {"image_id": "b", "image_name": "hall.jpg", "status": "error", "status_reason": "too dark"},
        ],
    )
    assert order == Order(
        "order-1",
        "Villa Rosa",
        busy=False,
        images=(
            Image("a", "kitchen.jpg", READY, "processed", paid=True),
            Image("b", "hall.jpg", FAILED, "error", "too dark"),
        ),
    )


@pytest.mark.parametrize(
    ("fields", "readiness"),
    [
        pytest.param({"status": "waiting"}, NOT_READY, id="waiting"),
        pytest.param({"status": "processing"}, NOT_READY, id="processing"),
        pytest.param({"status": "processed"}, READY, id="processed"),
        pytest.param({"status": "completed"}, READY, id="completed"),
        pytest.param({"status": "error"}, FAILED, id="error"),
        pytest.param({"status": "failed"}, FAILED, id="failed"),
        pytest.param({"status": "expired"}, EXPIRED, id="expired"),
        pytest.param({"status": "Processed"}, READY, id="capital_letter"),
        pytest.param({"status": "EXPIRED"}, EXPIRED, id="capitals"),
        pytest.param({"status": "waiting", "enhanced": True}, NOT_READY, id="status_before_flag"),
        pytest.param({"status": "processed", "error": True}, READY, id="status_before_error_flag"),
        pytest.param({"enhanced": True}, READY, id="old_enhanced"),
        pytest.param({"enhanced": False}, NOT_READY, id="old_not_enhanced"),
        pytest.param({"error": True}, FAILED, id="old_error"),
        pytest.param({"error": True, "enhanced": True}, FAILED, id="old_error_and_enhanced"),
        pytest.param({"error": False, "enhanced": False}, NOT_READY, id="old_neither"),
        pytest.param({"status": None, "enhanced": True}, READY, id="status_null"),
        pytest.param({"status": "polishing", "enhanced": False}, NOT_READY, id="unknown_status_with_flag"),
        pytest.param({"status": ["processed"], "enhanced": True}, READY, id="status_of_wrong_type"),
    ],
)
@pytest.mark.parametrize("busy", [False, True])
def test_readiness(fields: dict[str, Any], readiness: Readiness, *, busy: bool) -> None:
    """The status of an image decides, in any version of the API, whatever the order's status is."""
    assert _image(order={"is_processing": busy}, **fields).readiness is readiness


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"status": None}, id="null"),
        pytest.param({"status": ""}, id="empty"),
        pytest.param({"status": "polishing"}, id="unknown"),
        pytest.param({"enhanced": "yes", "error": 1}, id="flags_of_wrong_type"),
        pytest.param({"error": False}, id="no_error"),
    ],
)
@pytest.mark.parametrize(
    ("order", "readiness"),
    [
        pytest.param({}, READY, id="idle"),
        pytest.param({"is_processing": True}, NOT_READY, id="processing"),
        pytest.param({"is_merging": True}, NOT_READY, id="merging"),
    ],
)
def test_readiness_without_status_follows_the_order(
    fields: dict[str, Any], order: dict[str, Any], readiness: Readiness
) -> None:
    """An image without a status is requested when the order is finished, and not before."""
    assert _image(order=order, **fields).readiness is readiness


@pytest.mark.parametrize(
    ("flags", "busy"),
    [
        pytest.param({}, False, id="missing"),
        pytest.param({"is_merging": False, "is_processing": False}, False, id="neither"),
        pytest.param({"is_merging": True}, True, id="merging"),
        pytest.param({"is_processing": True}, True, id="processing"),
        pytest.param({"is_merging": False, "is_processing": True}, True, id="one_of_two"),
        pytest.param({"is_merging": None, "is_processing": None}, False, id="null"),
        pytest.param({"is_merging": "true", "is_processing": 1}, False, id="wrong_type"),
    ],
)
def test_busy_order(flags: dict[str, Any], *, busy: bool) -> None:
    """An order is busy if one of its own flags says so."""
    assert _order(name="Villa Rosa", **flags).busy is busy


@pytest.mark.parametrize(
    ("field", "value", "attribute", "read"),
    [
        pytest.param("image_id", 7, "image_id", "7", id="id_number"),
        pytest.param("image_id", 1.5, "image_id", "1.5", id="id_fraction"),
        pytest.param("image_id", "a/../b", "image_id", "a/../b", id="id_is_data"),
        pytest.param("image_name", None, "name", "", id="name_null"),
        pytest.param("image_name", 12, "name", "12", id="name_number"),
        pytest.param("image_name", {"en": "kitchen"}, "name", "", id="name_object"),
        pytest.param("image_name", ["kitchen"], "name", "", id="name_list"),
        pytest.param("image_name", True, "name", "", id="name_boolean"),
        pytest.param("image_name", "../\u0000\u202e", "name", "../\u0000\u202e", id="name_is_data"),
        pytest.param("image_name", "\U0001f600", "name", "\U0001f600", id="name_emoji"),
        pytest.param("image_name", "a\ud800", "name", "a?", id="name_half_a_pair"),
        pytest.param("status_reason", {"code": 1}, "status_reason", None, id="status_reason_object"),
        pytest.param("downloaded", None, "paid", False, id="downloaded_null"),
        pytest.param("downloaded", "true", "paid", False, id="downloaded_text"),
        pytest.param("downloaded", 1, "paid", False, id="downloaded_number"),
        pytest.param("downloaded", True, "paid", True, id="downloaded"),
    ],
)
def test_field_of_an_unexpected_type(field: str, value: Any, attribute: str, read: Any) -> None:
    """One odd field never costs the image: numbers become text, anything else counts as missing."""
    assert getattr(_image(**{field: value}), attribute) == read


@pytest.mark.parametrize(
    "image",
    [
        pytest.param({}, id="empty"),
        pytest.param({"image_id": None}, id="null"),
        pytest.param({"image_id": ""}, id="empty_text"),
        pytest.param({"image_id": True}, id="boolean"),
        pytest.param({"image_id": {"id": "a"}}, id="object"),
        pytest.param({"image_id": None, "status": "processed"}, id="processed"),
    ],
)
def test_image_without_an_id(image: dict[str, Any]) -> None:
    """An image that cannot be requested is listed as failed, so that the report names it."""
    (read,) = _order(images=[{"image_name": "attic.jpg", **image}]).images

    assert (read.image_id, read.name, read.readiness) == ("", "attic.jpg", FAILED)
    assert read.status_reason == "it is listed without an id"


def test_images_keep_their_order_and_count_once() -> None:
    """A repeated id counts once, at its first position; images without an id are all kept, with any name."""
    order = _order(
        images=[
            {"image_id": "#3", "image_name": "odd id"},
            {"image_id": "b", "image_name": "first"},
            {"image_id": "b", "image_name": "again"},
            {"image_name": "no id"},
            {"image_name": "no id either"},
            {"image_id": 3, "image_name": "number"},
            {"image_id": "3", "image_name": "same in text"},
        ]
    )
    assert [image.name for image in order.images] == ["odd id", "first", "no id", "no id either", "number"]


@pytest.mark.parametrize(
    ("payload", "name", "images"),
    [
        pytest.param(b'{"images": null}', "", 0, id="images_null"),
        pytest.param(b'{"images": []}', "", 0, id="images_empty"),
        pytest.param(b'{"name": "Villa"}', "Villa", 0, id="images_missing"),
        pytest.param(b'{"name": null, "order_id": null}', "", 0, id="nulls"),
        pytest.param(b'{"name": 7, "images": [{}]}', "7", 1, id="name_number"),
        pytest.param(b'{"order_id": "another"}', "", 0, id="other_id"),
        pytest.param(b'\xef\xbb\xbf{"name": "Villa"}', "Villa", 0, id="byte_order_mark"),
        pytest.param(b' \n{"name": "Villa"}\n', "Villa", 0, id="white_space"),
        pytest.param(b'{"name": "V", "future": {"deep": [{"er": null}]}}', "V", 0, id="unknown_fields"),
    ],
)
def test_order_with_little_in_it(payload: bytes, name: str, images: int) -> None:
    """Any field of an order may be missing; the id is that of the request."""
    order = read_order("order-1", payload)
    assert (order.order_id, order.name, len(order.images)) == ("order-1", name, images)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>Bad gateway</html>", id="html"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'"order"', id="text"),
        pytest.param(b"7", id="number"),
        pytest.param(b"{}", id="empty_object"),
        pytest.param(b'{"message": "Internal server error"}', id="error_object"),
        pytest.param(b'{"images": "none"}', id="images_text"),
        pytest.param(b'{"images": {"a": {}}}', id="images_object"),
        pytest.param(b'{"images": ["a"]}', id="image_text"),
        pytest.param(b'{"images": [null]}', id="image_null"),
        pytest.param(b'{"name": "Villa", "images": [{"image_id"', id="truncated"),
        pytest.param(b'{"name": "Villa"} {"name": "Rosa"}', id="two_values"),
        pytest.param(b'{"name": "\xff\xfe"}', id="invalid_utf8"),
        pytest.param(b'{"name": ' * 50_000, id="deep_objects"),
        pytest.param(b"[" * 200_000, id="deep_lists"),
        pytest.param(b'{"name": ' + b"1" * 5000 + b"}", id="endless_number"),
    ],
)
def test_other_payload_is_no_order(payload: bytes) -> None:
    """Any other payload raises one exception class, whose message quotes nothing of it."""
    with pytest.raises(PayloadError, match=r"^the response (is not an order|has none of an order's fields)$"):
        read_order("order-1", payload)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
IMAGE_FIELDS = ["image_id", "image_name", "status", "status_reason", "downloaded", "enhanced", "error", "other"]
ORDER_FIELDS = ["order_id", "name", "status", "is_processing", "is_merging"]
images = st.lists(st.dictionaries(st.sampled_from(IMAGE_FIELDS), anything, max_size=8), max_size=4)


@given(st.dictionaries(st.sampled_from(ORDER_FIELDS), anything), images)
def test_no_field_costs_the_order(fields: dict[str, Any], listed: list[dict[str, Any]]) -> None:
    """An order with any values is parsed, and all of its text can be encoded as UTF-8."""
    order = _order(**fields, images=listed)

    assert len(order.images) <= len(listed)
    for text in (order.name, *(text for image in order.images for text in (image.image_id, image.name))):
        text.encode()


@pytest.mark.parametrize("character", ["x", "\u0301", "\U0001f469", "\ud800"])
def test_long_names_are_cut(character: str) -> None:
    """Names are cut to a bound; ids are not, since a cut id is another id."""
    order = _order(name=character * 100_000, images=[{"image_id": "a" * 2000, "image_name": character * 100_000}])
    assert len(order.name) == len(order.images[0].name) == MAX_NAME_CHARACTERS
    assert order.images[0].image_id == "a" * 2000
