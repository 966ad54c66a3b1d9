"""Query parameters of a download: the bounds of each, and the detail of each rejection."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.archive.parameters import (
    PARAMETERS,
    ArchiveOptions,
    ManifestMode,
    OnError,
    check_archive_id,
    check_order_id,
    parse_parameters,
)
from service.archive.writer import Layout
from service.errors import InvalidArchiveId, InvalidOrderId, InvalidParameter, RepeatedParameter, UnknownParameter
from service.model import ImageOptions

UUID = "3f2b8c1e-5d4a-4e6f-9a7b-0c1d2e3f4a5b"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(UUID, id="usual"),
        pytest.param(UUID.upper(), id="capitals"),
        pytest.param("00000000-0000-0000-0000-000000000000", id="nil"),
        pytest.param("ffffffff-ffff-ffff-ffff-ffffffffffff", id="max"),
    ],
)
def test_order_id_accepts_any_uuid(text: str) -> None:
    """A UUID in its usual form is returned unchanged, whatever its version."""
    assert check_order_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("villa-rosa", id="name"),
        pytest.param(UUID.replace("-", ""), id="without_dashes"),
        pytest.param(f"{{{UUID}}}", id="braces"),
        pytest.param(f"urn:uuid:{UUID}", id="urn"),
        pytest.param(f"{UUID}\n", id="trailing_newline"),
        pytest.param(f" {UUID}", id="leading_space"),
        pytest.param(f"{UUID}\0", id="nul"),
        pytest.param(f"{UUID}/..", id="parent"),
        pytest.param(f"../{UUID}", id="parent_in_front"),
        pytest.param(f"{UUID}?preview=false", id="query"),
        pytest.param(f"{UUID}%00", id="escape"),
        pytest.param(UUID[:-1], id="too_short"),
        pytest.param(UUID + "0", id="too_long"),
        pytest.param(UUID[:-1] + "g", id="no_hex_digit"),
        pytest.param(UUID.replace("3", "\u0663"), id="digits_of_another_script"),
        pytest.param(UUID.replace("3", "\uff13"), id="wide_digits"),
        pytest.param(UUID.replace("-", "\u2010"), id="other_dashes"),
    ],
)
def test_order_id_rejects_other_text(text: str) -> None:
    """Anything else is rejected before any upstream request."""
    with pytest.raises(InvalidOrderId):
        check_order_id(text)


@given(st.uuids())
def test_order_id_accepts_every_uuid(order_id: uuid.UUID) -> None:
    """No version or variant is preferred."""
    assert check_order_id(str(order_id)) == str(order_id)


def test_no_parameters_give_the_defaults() -> None:
    """Without parameters the archive is a free preview of all images, and failures are reported."""
    assert parse_parameters([]) == ArchiveOptions(
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
        pytest.param("preview", "1", ImageOptions(preview=True), id="preview_one"),
        pytest.param("preview", "0", ImageOptions(preview=False), id="no_preview_zero"),
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
def test_image_parameter_sets_one_option(name: str, text: str, options: ImageOptions) -> None:
    """One parameter changes one option and nothing else."""
    assert parse_parameters([(name, text)]) == ArchiveOptions(image=options)


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
def test_archive_parameter_sets_one_option(name: str, text: str, options: ArchiveOptions) -> None:
    """A parameter of the archive changes no image option."""
    assert parse_parameters([(name, text)]) == options


@pytest.mark.parametrize(
    ("preview", "dev_mode", "spends"),
    [("true", "false", False), ("true", "true", False), ("false", "true", False), ("false", "false", True)],
)
def test_only_full_quality_spends_credits(preview: str, dev_mode: str, *, spends: bool) -> None:
    """Credits are bought by ``preview=false`` without ``dev_mode``, and by nothing else."""
    options = parse_parameters([("preview", preview), ("dev_mode", dev_mode)])
    assert options.image.spends_credits is spends


BAD_WORDS = ["", " ", "JPEG", "jpg", "jpeg ", "gif", "jpeg,png", "jpeg\n"]
BAD_FLAGS = ["", "2", "01", "yes", "no", "on", "off", "null", " true", "true\n", "tru", "t"]
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
def test_invalid_value_is_rejected(name: str, text: str) -> None:
    """An invalid value is rejected with the parameter's name; it is never corrected or ignored."""
    with pytest.raises(InvalidParameter) as caught:
        parse_parameters([(name, text)])

    assert type(caught.value) is InvalidParameter
    assert caught.value.extensions == {"parameter": name}
    assert repr(name) in caught.value.detail


def test_invalid_values_cover_every_parameter() -> None:
    """A new parameter needs invalid values in the table above."""
    assert set(BAD_VALUES) == set(PARAMETERS)


@pytest.mark.parametrize(
    "name", ["previw", "Preview", "PREVIEW", "preview ", "", "only[]", "x" * 1000, "prev\u0131ew", "api_key"]
)
def test_unknown_parameter_is_rejected(name: str) -> None:
    """A misspelt name is rejected, so that a misspelt ``preview`` never buys images."""
    with pytest.raises(UnknownParameter) as caught:
        parse_parameters([("format", "png"), (name, "false")])

    assert caught.value.extensions == {"parameter": name}
    assert "preview" in caught.value.detail


@pytest.mark.parametrize("name", sorted(set(PARAMETERS) - {"only"}))
def test_repeated_parameter_is_rejected(name: str) -> None:
    """A parameter given twice is rejected, even with the same value."""
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
        parse_parameters([(name, text), (name, text)])

    assert caught.value.extensions == {"parameter": name}


def test_only_may_repeat() -> None:
    """``only`` collects its ids in the given order, each once."""
    assert parse_parameters([("only", "b"), ("format", "png"), ("only", "a"), ("only", "b")]).only == ("b", "a")


@pytest.mark.parametrize(
    ("name", "text", "detail"),
    [
        ("format", "gif", "'format' must be one of jpeg, png, webp, avif, jxl."),
        ("quality", "91", "'quality' must be a whole number from 1 to 90."),
        ("preview", "yes", "'preview' must be true, false, 1 or 0."),
        ("scale", "2", "'scale' must be a number above 0 and up to 1, such as 0.5."),
        ("on_error", "ignore", "'on_error' must be one of report, abort."),
        ("max_credits", "-1", "'max_credits' must be a whole number from 0 to 1000000."),
        ("archive_id", "mine", "'archive_id' must be a UUID."),
        ("only", "", "'only' must be the id of an image of the order."),
    ],
)
def test_rejection_says_what_is_allowed(name: str, text: str, detail: str) -> None:
    """The detail names the parameter and the allowed values."""
    with pytest.raises(InvalidParameter) as caught:
        parse_parameters([("dev_mode", "true"), (name, text)])

    assert caught.value.detail == detail


def test_archive_id_is_returned_in_lower_case() -> None:
    """The case of an archive id does not matter."""
    assert check_archive_id(UUID.upper()) == UUID


@pytest.mark.parametrize("text", ["", "mine", UUID + "0", f"urn:uuid:{UUID}"])
def test_archive_id_rejects_other_text(text: str) -> None:
    """An archive id is a UUID in its usual form."""
    with pytest.raises(InvalidArchiveId):
        check_archive_id(text)
