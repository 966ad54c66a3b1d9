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
    failure=Failure(reason=Reason.UPSTREAM_ERROR, detail="the API responded with 503", upstream_status=503),
)
GONE = _failed(Reason.NOT_FOUND)


def test_report_text_of_an_archive_with_missing_images() -> None:
    """The full text of a report, as in the archive."""
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
        "  why:    The image service had an error. Trying again is likely to help.\n"
        "  detail: the API responded with 503\n"
        "\n"
        "To download only the missing images, run this (with the same API key, if the service requires one):\n"
        "\n"
        "  curl --fail --location --output missing_images_1.zip "
        "'https://zip.example/orders/1/images?only=b&only=c'\"'\"'s'\n"
    )


def test_report_of_a_complete_archive_has_no_retry_command() -> None:
    """A complete archive's report states its count and no second download."""
    text = report_text(CONTEXT, [GOOD])

    assert "1 of 1 images are in this archive." in text
    assert "Missing" not in text
    assert "curl" not in text


@pytest.mark.parametrize("reason", [Reason.NOT_FOUND, Reason.EXPIRED, Reason.PROCESSING_FAILED])
def test_report_without_retryable_images_has_no_retry_command(reason: Reason) -> None:
    """Where trying again helps no image, the report states that instead of a command."""
    text = report_text(CONTEXT, [GOOD, _failed(reason)])

    assert "Trying again will not help." in text
    assert "Downloading again will not bring the missing images." in text
    assert "curl" not in text


def test_report_and_manifest_state_spent_credits() -> None:
    """Credits are money: both state how many were spent; the report omits a zero."""
    context = replace(CONTEXT, credits_spent=12)

    assert "3 of 3 images are in this archive.\nBought in full quality for it: 12.\n" in report_text(
        context, [GOOD] * 3
    )
    assert "Bought" not in report_text(CONTEXT, [GOOD])
    assert manifest(context, [GOOD])["credits_spent"] == 12


def test_every_reason_has_its_own_plain_words() -> None:
    """A new reason cannot be forgotten, and no two have the same text."""
    assert set(PLAIN_WORDS) == set(Reason)
    assert len({words for words, _ in PLAIN_WORDS.values()}) == len(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_report_explains_every_reason(reason: Reason) -> None:
    """Each missing image has its reason in plain words, and whether trying again helps."""
    text = report_text(CONTEXT, [_failed(reason)])
    words, retry = PLAIN_WORDS[reason]

    assert f"why:    {words} {retry.value}\n" in text
    assert ("curl" in text) is (retry is not Retry.POINTLESS)


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_foreign_text_stays_within_its_report_line(name: str, detail: str) -> None:
    """Any text of an uploader or the upstream stays within its line, and the report can be encoded."""
    context = replace(CONTEXT, order_name=name, retry_urls=[f"https://zip.example/{detail}"])
    plain = report_text(CONTEXT, [_failed(Reason.TIMEOUT, detail="plain")])
    text = report_text(context, [_failed(Reason.TIMEOUT, name=name, detail=f"plain {detail}")])

    assert len(text.splitlines()) == len(plain.splitlines())
    assert text.encode("utf-8").count(b"\n") == len(plain.splitlines())


def test_report_marks_missing_names() -> None:
    """An order or image without a visible name is listed as "(no name)"."""
    text = report_text(replace(CONTEXT, order_name=""), [_failed(Reason.TIMEOUT, name="\u200b")])

    assert "Order:   (no name) (1111" in text
    assert "- (no name)\n" in text


def test_manifest_lists_images_in_the_orders_order() -> None:
    """The full manifest: schema, request, counts and images."""
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
                "detail": "the API responded with 503",
                "upstream_status": 503,
            },
        ],
    }


def test_manifest_without_missing_images_has_nothing_to_retry() -> None:
    """A retry URL without image ids would request all images: it is left out."""
    assert manifest(CONTEXT, [GOOD])["retry_urls"] == []


@given(st.text(st.characters(codec=None)))
def test_manifest_keeps_any_name_exactly(name: str) -> None:
    """Programs can read back any original name."""
    encoded = manifest_json(CONTEXT, [_failed(Reason.TIMEOUT, name=name)])

    assert encoded.isascii()
    assert json.loads(encoded)["images"][0]["name"] == json.loads(json.dumps(name))


@pytest.mark.parametrize("name", [REPORT_NAME, MANIFEST_NAME])
def test_report_names_are_usable_entry_names(name: str) -> None:
    """The writer stores the names of report and manifest unchanged."""
    writer = ArchiveWriter()
    writer.add(name, b"")

    assert [entry.name for entry in writer.entries] == [name]
