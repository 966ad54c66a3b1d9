"""Truncated forms over raw sockets: a photo counts only if its boundary ends it (RFC 2046 section 5.1.1)."""

import asyncio
import json
from typing import Any

import pytest
from pydantic import SecretStr
from yarl import URL

from service.sandbox import Sandbox
from tests.archives import jpeg
from tests.conftest import StartService

ADMIN = "token-of-the-operator"
PHOTO = jpeg(150_000, 1)
PART = b'--limit\r\nContent-Disposition: form-data; name="files"; filename="%s.jpg"\r\n\r\n'
COMPLETE = PART % b"complete" + jpeg(1000, 2) + b"\r\n"
TRUNCATED = PART % b"half" + PHOTO[:100_000]


def by_length(body: bytes) -> bytes:
    """Frame a body by a Content-Length that fits it."""
    return b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def by_chunks(body: bytes) -> bytes:
    """Frame a body as chunks with a last chunk."""
    pieces = [body[start : start + 7000] for start in range(0, len(body), 7000)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


async def upload(service: str, framed: bytes) -> tuple[int, dict[str, Any]]:
    """Send a form as admin; return status and document of the response, after which the connection closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(service).port)
    writer.write(
        b"POST /api/create-order HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Admin-Token: %s\r\n"
        b"Content-Type: multipart/form-data; boundary=limit\r\n%s" % (ADMIN.encode(), framed)
    )
    header, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(header.split()[1]), json.loads(body)


@pytest.fixture
async def creating(start_service: StartService) -> str:
    """The URL of a service with an admin token."""
    return await start_service(admin_token=SecretStr(ADMIN), max_upload_bytes=200_000, max_upload_files=2)


@pytest.mark.parametrize("framed", [by_length, by_chunks])
@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(TRUNCATED, id="in the photo"),
        pytest.param(PART % b"half" + PHOTO, id="behind the photo"),
        pytest.param(PART % b"half" + PHOTO + b"\r\n", id="before the boundary"),
        pytest.param(PART % b"half" + PHOTO + b"\r\n--lim", id="in the boundary"),
        pytest.param(PART % b"half" + PHOTO + b"--limit--\r\n", id="boundary not on a line of its own"),
        pytest.param(PART % b"half" + PHOTO[:3], id="in the first bytes"),
        pytest.param(PART % b"half", id="before the photo"),
    ],
)
async def test_photo_without_a_boundary_is_incomplete(cut: bytes, framed: Any, sandbox: Sandbox, creating: str) -> None:
    """It is neither registered nor put, but listed as failed; complete files before it are in the order."""
    status, document = await upload(creating, framed(cut))
    assert (status, document["type"]) == (400, "/problems/invalid-body")
    assert sandbox.requests == []
    assert [(one["file"], one["outcome"], one["reason"], one["image_id"]) for one in document["images"]] == [
        ("half.jpg", "failed", "incomplete", None)
    ]

    status, document = await upload(creating, framed(COMPLETE + cut))
    assert status == 400
    assert [(one["file"], one["outcome"], one["reason"]) for one in document["images"]] == [
        ("complete.jpg", "uploaded", None),
        ("half.jpg", "failed", "incomplete"),
    ]
    assert [image.upload and image.upload.read_bytes() for image in sandbox.orders[document["order_id"]].images] == [
        jpeg(1000, 2)
    ]
    assert [one.method for one in sandbox.requests if one.origin == "storage"] == ["PUT"]


@pytest.mark.parametrize("framed", [by_length, by_chunks])
@pytest.mark.parametrize("end", [b"--limit", b"--limit\r\n"], ids=["no line end", "a delimiter like those before"])
async def test_form_without_a_closing_delimiter_is_rejected(
    end: bytes, framed: Any, sandbox: Sandbox, creating: str
) -> None:
    """A photo that its boundary ends is in the order; the form is incomplete, and the response says so."""
    status, document = await upload(creating, framed(COMPLETE + end))
    assert (status, document["type"]) == (400, "/problems/invalid-body")
    assert [(one["file"], one["outcome"]) for one in document["images"]] == [("complete.jpg", "uploaded")]
    (image,) = sandbox.orders[document["order_id"]].images
    assert image.upload is not None
    assert image.upload.read_bytes() == jpeg(1000, 2)


@pytest.mark.parametrize(
    ("form", "reasons"),
    [
        pytest.param(PART % b"a" + jpeg(200_001, 1), ["too_large"], id="too large"),
        pytest.param(COMPLETE * 2 + TRUNCATED, [None, None, "too_many"], id="too many"),
        pytest.param(PART % b"a" + b"<html>" * 100, ["incomplete"], id="not a photo"),
    ],
)
async def test_truncated_rejected_file_keeps_its_reason(form: bytes, reasons: list[str | None], creating: str) -> None:
    """A file that is too large or one too many keeps that reason: sending it whole would not help."""
    status, document = await upload(creating, by_length(form))
    assert (status, [one["reason"] for one in document["images"]]) == (400, reasons)


@pytest.mark.parametrize("framed", [by_length, by_chunks])
async def test_field_without_a_boundary_is_rejected(framed: Any, sandbox: Sandbox, creating: str) -> None:
    """A form truncated within a field is a 400, and no order is created."""
    status, document = await upload(
        creating, framed(b'--limit\r\nContent-Disposition: form-data; name="name"\r\n\r\n12')
    )
    assert (status, document["type"], sandbox.requests) == (400, "/problems/invalid-body", [])


async def test_connection_closed_within_a_photo_leaves_nothing(sandbox: Sandbox, creating: str) -> None:
    """A body shorter than its Content-Length, closed cleanly, creates nothing at the API and frees the upload slot."""
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(creating).port)
    writer.write(
        b"POST /api/create-order HTTP/1.1\r\nHost: x\r\nX-Admin-Token: %s\r\nContent-Length: 999999\r\n"
        b"Content-Type: multipart/form-data; boundary=limit\r\n\r\n%s" % (ADMIN.encode(), TRUNCATED)
    )
    writer.write_eof()
    await reader.read()
    writer.close()
    await writer.wait_closed()
    assert sandbox.requests == []
    status, document = await upload(creating, by_length(COMPLETE + b"--limit--\r\n"))
    assert (status, document["uploaded"]) == (201, 1)
