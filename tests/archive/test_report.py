"""The report for people and the manifest for programs."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.archive.report import (
    MANIFEST_NAME,
    PLAIN_WORDS,
    REPORT_NAME,
    ReportContext,
    Retry,
    manifest,
    manifest_json,
    report_text,
)
from service.archive.writer import ArchiveWriter
from service.model import Entry, Failure, Image, Outcome, Readiness, Reason

CONTEXT = ReportContext(
    order_id="11111111-1111-4111-8111-111111111111",
    order_name="Villa Rosa",
    archive_id="22222222-2222-4222-8222-222222222222",
    parameters={"format": "jpeg", "preview": True, "quality": None},
    created_at="2026-01-02T03:04:05Z",
    retry_urls=["https://zip.example/orders/1/images?only=b&only=c's"],
)


def _image(image_id: str, name: str) -> Image:
    return Image(image_id=image_id, name=name, readiness=Readiness.READY)


def _failed(reason: Reason, *, position: int = 1, name: str = "hall.jpg", detail: str = "") -> Outcome:
    failure = Failure(reason=reason, detail=detail, upstream_status=None)
    return Outcome(position=position, image=_image(f"id-{position}", name), attempts=3, failure=failure)


GOOD = Outcome(
    position=0,
    image=_image("id-0", "kitchen.heic"),
    attempts=1,
    entry=Entry(name="kitchen.jpg", size=1234, crc32=0xABC),
    sha256="ab" * 32,
)
LOST = Outcome(
    position=2,
    image=_image("id-2", "bath.jpg"),
    attempts=3,
    failure=Failure(reason=Reason.UPSTREAM_ERROR, detail="the API answered 503", upstream_status=503),
)
GONE = _failed(Reason.NOT_FOUND)


def test_report_for_people() -> None:
    """The whole report, as a person finds it in the archive."""
    assert report_text(CONTEXT, [GOOD, LOST, GONE]) == (
        "Download report\n"
        "===============\n"
        "\n"
        "Order:   Villa Rosa (11111111-1111-4111-8111-111111111111)\n"
        "Archive: 22222222-2222-4222-8222-222222222222\n"
        "Made at: 2026-01-02T03:04:05Z\n"
        "\n"
        "1 of 3 images are in this archive.\n"
        "\n"
        "Missing (2):\n"
        "\n"
        "- hall.jpg\n"
        "  id:     id-1\n"
        "  why:    It could not be found; perhaps it was deleted. Trying again will not help.\n"
        "\n"
        "- bath.jpg\n"
        "  id:     id-2\n"
        "  why:    The image service had a fault. Trying again is likely to help.\n"
        "  detail: the API answered 503\n"
        "\n"
        "To get the missing images only, run this (with the same key, if the service asked you for one):\n"
        "\n"
        "  curl --fail --location --output missing_images_1.zip "
        "'https://zip.example/orders/1/images?only=b&only=c'\"'\"'s'\n"
    )


def test_report_when_nothing_is_missing() -> None:
    """A complete archive's report says so and offers no second download."""
    text = report_text(CONTEXT, [GOOD])

    assert "1 of 1 images are in this archive." in text
    assert "Missing" not in text
    assert "curl" not in text


@pytest.mark.parametrize("reason", [Reason.NOT_FOUND, Reason.EXPIRED, Reason.PROCESSING_FAILED])
def test_report_does_not_send_people_on_a_pointless_errand(reason: Reason) -> None:
    """Where no image can be had by trying again, the report says so instead of giving a command."""
    text = report_text(CONTEXT, [GOOD, _failed(reason)])

    assert "Trying again will not help." in text
    assert "Downloading again will not bring the missing images." in text
    assert "curl" not in text


def test_what_was_bought_is_said() -> None:
    """Credits are money: report and manifest tell how many it took, and the report is silent about none."""
    context = replace(CONTEXT, credits_spent=12)

    assert "3 of 3 images are in this archive.\nBought in full quality for it: 12.\n" in report_text(
        context, [GOOD] * 3
    )
    assert "Bought" not in report_text(CONTEXT, [GOOD])
    assert manifest(context, [GOOD])["credits_spent"] == 12


def test_every_reason_has_plain_words() -> None:
    """A new reason cannot be forgotten here, and no two read alike."""
    assert set(PLAIN_WORDS) == set(Reason)
    assert len({words for words, _ in PLAIN_WORDS.values()}) == len(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_report_explains_every_reason(reason: Reason) -> None:
    """Each missing image stands there with why, and whether trying again helps, in words and not in our terms."""
    text = report_text(CONTEXT, [_failed(reason)])
    words, retry = PLAIN_WORDS[reason]

    assert f"why:    {words} {retry.value}\n" in text
    assert ("curl" in text) is (retry is not Retry.POINTLESS)


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_nothing_in_the_report_breaks_its_lines(name: str, detail: str) -> None:
    """Whatever an uploader or the upstream wrote stays within its line, and the report can be encoded."""
    context = replace(CONTEXT, order_name=name, retry_urls=[f"https://zip.example/{detail}"])
    plain = report_text(CONTEXT, [_failed(Reason.TIMEOUT, detail="plain")])
    text = report_text(context, [_failed(Reason.TIMEOUT, name=name, detail=f"plain {detail}")])

    assert len(text.splitlines()) == len(plain.splitlines())
    assert text.encode("utf-8").count(b"\n") == len(plain.splitlines())


def test_missing_name_is_said() -> None:
    """An order or image without a name is called so."""
    text = report_text(replace(CONTEXT, order_name=""), [_failed(Reason.TIMEOUT, name="\u200b")])

    assert "Order:   (no name) (1111" in text
    assert "- (no name)\n" in text


def test_manifest_for_programs() -> None:
    """The whole manifest: schema, request, counts, and the images in the order's own order."""
    assert manifest(CONTEXT, [LOST, GOOD]) == {
        "schema": 1,
        "order_id": "11111111-1111-4111-8111-111111111111",
        "order_name": "Villa Rosa",
        "archive_id": "22222222-2222-4222-8222-222222222222",
        "created_at": "2026-01-02T03:04:05Z",
        "parameters": {"format": "jpeg", "preview": True, "quality": None},
        "counts": {"total": 2, "downloaded": 1, "failed": 1, "bytes": 1234},
        "credits_spent": 0,
        "missing": ["id-2"],
        "retry_urls": ["https://zip.example/orders/1/images?only=b&only=c's"],
        "images": [
            {
                "position": 0,
                "image_id": "id-0",
                "name": "kitchen.heic",
                "outcome": "downloaded",
                "attempts": 1,
                "entry": "kitchen.jpg",
                "size": 1234,
                "crc32": "00000abc",
                "sha256": "ab" * 32,
                "reason": None,
                "detail": None,
                "upstream_status": None,
            },
            {
                "position": 2,
                "image_id": "id-2",
                "name": "bath.jpg",
                "outcome": "failed",
                "attempts": 3,
                "entry": None,
                "size": None,
                "crc32": None,
                "sha256": None,
                "reason": "upstream_error",
                "detail": "the API answered 503",
                "upstream_status": 503,
            },
        ],
    }


def test_manifest_without_missing_images_has_nothing_to_retry() -> None:
    """A retry URL that asks for no image would ask for all: it is left out."""
    assert manifest(CONTEXT, [GOOD])["retry_urls"] == []


@given(st.text(st.characters(codec=None)))
def test_manifest_keeps_any_name_exactly(name: str) -> None:
    """Programs get the original name back, whatever it holds."""
    encoded = manifest_json(CONTEXT, [_failed(Reason.TIMEOUT, name=name)])

    assert encoded.isascii()
    assert json.loads(encoded)["images"][0]["name"] == json.loads(json.dumps(name))


@pytest.mark.parametrize("name", [REPORT_NAME, MANIFEST_NAME])
def test_report_names_are_entry_names(name: str) -> None:
    """The writer takes the names of the report and the manifest as they are."""
    writer = ArchiveWriter()
    writer.add(name, b"")

    assert [entry.name for entry in writer.entries] == [name]
