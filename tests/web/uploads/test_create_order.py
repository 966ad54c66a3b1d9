"""Uploads: photos become an order, rejected files are listed with a reason, and no temporary file remains."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from service.sandbox import ANY_IMAGE, Fault, Kind, Sandbox
from service.sandbox.uploads import Uploads
from service.upstream.image_formats import PHOTO_SNIFF_BYTES, is_photo
from service.web.uploads.form_parts import clean_name
from tests.archives import download, images_url, jpeg
from tests.conftest import StartService

ADMIN = "token-of-the-operator"
AS_ADMIN = {"X-Admin-Token": ADMIN}
Response = tuple[int, dict[str, Any]]


@pytest.fixture
async def creating(start_service: StartService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a service with an admin token, whose temporary files are in ``tmp_path``."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return await start_service(
        admin_token=SecretStr(ADMIN), max_upload_files=5, max_upload_bytes=300_000, image_attempts=2
    )


def form(*files: tuple[str, bytes], **fields: str) -> aiohttp.FormData:
    """Return a form with its fields, then its files."""
    data = aiohttp.FormData(quote_fields=False, default_to_multipart=True)  # as browsers and curl write them
    for name, value in fields.items():
        data.add_field(name, value)
    for name, content in files:
        data.add_field("files", content, filename=name, content_type="image/jpeg")
    return data


async def post(
    client: aiohttp.ClientSession, service: str, data: Any = None, path: str = "create-order", **headers: str
) -> Response:
    """Send an upload as admin; return status and document."""
    async with client.post(f"{service}/api/{path}", data=data, headers={**AS_ADMIN, **headers}) as response:
        return response.status, await response.json()


def outcomes(document: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Return each file's name, and the reason if it failed."""
    return [(one["file"], one["reason"]) for one in document.get("images", document.get("failures", []))]


def spooled(folder: Path) -> list[Path]:
    """Return the temporary files of uploads in a folder."""
    return list(folder.glob("upload-*"))


async def test_upload_creates_an_order(sandbox: Sandbox, creating: str, client: aiohttp.ClientSession) -> None:
    """Photos are put to the storage byte for byte, and are downloaded enhanced, under their names."""
    photos = [("hall.jpg", jpeg(200_000, 1)), ("a b/../küche.jpg", jpeg(90_000, 2)), ("hall.jpg", jpeg(1000, 3))]
    status, document = await post(
        client, creating, form(*photos, name="12 High Street", enhance_type="warm", sky_replacement="true")
    )
    assert status == 201
    assert (document["name"], document["uploaded"], document["failed"]) == ("12 High Street", 3, 0)
    assert outcomes(document) == [("hall.jpg", None), ("küche.jpg", None), ("hall.jpg", None)]
    order = sandbox.orders[document["order_id"]]
    assert [image.image_id for image in order.images] == [one["image_id"] for one in document["images"]]
    for image, (_, content) in zip(order.images, photos, strict=True):
        assert image.upload is not None
        assert image.upload.read_bytes() == content
        assert image.extra == {"enhance_type": "warm", "sky_replacement": True}
    puts = [one for one in sandbox.requests if one.origin == "storage"]
    assert len(puts) == 3
    assert all("x-api-key" not in {name.lower() for name in one.headers} for one in puts)


async def test_sample_order_can_be_downloaded(sandbox: Sandbox, creating: str, client: aiohttp.ClientSession) -> None:
    """The bundled photos become an order that can be downloaded when it is processed."""
    status, document = await post(client, creating, path="create-sample-order")
    assert (status, document["uploaded"], document["failed"]) == (201, 3, 0)
    for image in sandbox.orders[document["order_id"]].images:
        image.status = "processed"
    files = await download(client, images_url(creating, document["order_id"]))
    assert sorted(files) == ["garden.jpg", "kitchen.jpg", "living-room.jpg"]


async def test_rejected_files_are_listed_with_a_reason(
    sandbox: Sandbox, creating: str, client: aiohttp.ClientSession
) -> None:
    """Each file that is not a photo of allowed size is listed with its reason; the others are in the order."""
    files = [
        ("empty.jpg", b""),
        ("page.jpg", b"<html>" + b" " * 1000),
        ("huge.jpg", jpeg(300_001, 1)),
        ("largest.jpg", jpeg(300_000, 2)),
        ("good.jpg", jpeg(1000, 3)),
        ("sixth.jpg", jpeg(1000, 4)),
    ]
    status, document = await post(client, creating, form(*files))
    assert (status, document["uploaded"], document["failed"]) == (201, 2, 4)
    assert outcomes(document) == [
        ("empty.jpg", "empty"),
        ("page.jpg", "not_a_photo"),
        ("huge.jpg", "too_large"),
        ("largest.jpg", None),
        ("good.jpg", None),
        ("sixth.jpg", "too_many"),
    ]
    assert len(sandbox.orders[document["order_id"]].images) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
@pytest.mark.parametrize("size", [1000, 100_000], ids=["at the flush", "at a write"])
async def test_full_disk_is_reported(
    size: int, sandbox: Sandbox, creating: str, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without disk space, or without a folder, is reported; files uploaded before remain and are listed."""
    real = tempfile.NamedTemporaryFile
    made = []

    def full_at_the_second(**options: Any) -> Any:
        made.append(options)
        if len(made) == 3:
            raise FileNotFoundError("no folder")
        return real(**options) if len(made) != 2 else Path("/dev/full").open("wb")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full_at_the_second)
    files = [(f"{n}.jpg", jpeg(size, n)) for n in range(4)]
    status, document = await post(client, creating, form(*files))
    assert (status, document["uploaded"], document["failed"]) == (201, 2, 2)
    assert outcomes(document) == [("0.jpg", None), ("1.jpg", "no_room"), ("2.jpg", "no_room"), ("3.jpg", None)]
    assert len(sandbox.orders[document["order_id"]].images) == 2


async def test_upload_without_a_valid_file_creates_no_order(
    sandbox: Sandbox, creating: str, client: aiohttp.ClientSession
) -> None:
    """Without a valid file no order is created, and the response lists the reasons."""
    before = set(sandbox.orders)
    status, document = await post(client, creating, form(("a.jpg", b""), ("b.jpg", b"nonsense")))
    assert (status, document["type"]) == (422, "/problems/no-files-uploaded")
    assert outcomes(document) == [("a.jpg", "empty"), ("b.jpg", "not_a_photo")]
    assert set(sandbox.orders) == before


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(Kind.STATUS, status=500), id="500"),
        pytest.param(Fault(Kind.RESET), id="reset"),
        pytest.param(Fault(Kind.STATUS, status=429), id="429"),
        *(pytest.param(Fault(Kind.STATUS, status=one), id=str(one)) for one in (400, 401, 402, 403, 409, 412)),
    ],
)
async def test_failed_puts_are_retried(
    fault: Fault, sandbox: Sandbox, creating: str, client: aiohttp.ClientSession
) -> None:
    """A temporarily failed PUT is retried with the whole file."""
    sandbox.faults.random(1.0, [fault], origin="upload", max_per_image=1)
    status, document = await post(client, creating, form(("a.jpg", jpeg(150_000, 1)), ("b.jpg", jpeg(1000, 2))))
    assert (status, document["failed"]) == (201, 0)
    uploads = [image.upload for image in sandbox.orders[document["order_id"]].images]
    assert [upload.read_bytes() for upload in uploads if upload] == [jpeg(150_000, 1), jpeg(1000, 2)]
    assert sum(sandbox.faults.injected.values()) == 2


async def test_rejected_puts_are_not_retried(sandbox: Sandbox, creating: str, client: aiohttp.ClientSession) -> None:
    """A PUT that the storage rejects permanently is not retried; the response has the id of the created order."""
    sandbox.faults.always(ANY_IMAGE, Fault(Kind.STATUS, status=404), origin="upload")
    status, document = await post(client, creating, form(("a.jpg", jpeg(1000, 1))))
    assert (status, document["type"]) == (422, "/problems/no-files-uploaded")
    assert outcomes(document) == [("a.jpg", "not_found")]
    assert document["order_id"] in sandbox.orders
    assert len([one for one in sandbox.requests if one.origin == "storage"]) == 1


@pytest.mark.parametrize("rejection", [400, 401, 402, 403])
async def test_puts_rejected_by_the_storage_are_not_about_our_key(
    rejection: int, sandbox: Sandbox, creating: str, client: aiohttp.ClientSession
) -> None:
    """A storage that rejects its signed URL every time is an upstream error, not a key or credits that lack."""
    sandbox.faults.always(ANY_IMAGE, Fault(Kind.STATUS, status=rejection), origin="upload")
    _, document = await post(client, creating, form(("a.jpg", jpeg(1000, 1))))
    assert outcomes(document) == [("a.jpg", "upstream_error")]
    assert len([one for one in sandbox.requests if one.origin == "storage"]) == 2  # attempts of the fixture


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        pytest.param("https://[::1/a", "upstream_error", id="open bracket"),
        pytest.param("https://files.example.com:99999/a", "upstream_error", id="port that cannot be"),
        pytest.param("/a", "upstream_error", id="relative"),
        pytest.param("https://\u24dbocalhost/a", "redirect_refused", id="host that is not encoded"),
        pytest.param("ftp://files.example.com/a", "redirect_refused", id="ftp"),
        pytest.param("https://me@files.example.com/a", "redirect_refused", id="user"),
        pytest.param("{storage}/a?content-type=a%0d%0aX-Evil:1", "upstream_error", id="header injection"),
        pytest.param("{storage}/a?content-type=%ff%c3%a4", "upstream_error", id="type that is no text"),
    ],
)
async def test_invalid_upload_urls_are_rejected(
    address: str, reason: str, sandbox: Sandbox, creating: str, client: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A file is put only to an upload URL that the URL policy allows; otherwise it is reported as failed."""
    monkeypatch.setattr(Uploads, "_signed_url", lambda *_: address.replace("{storage}", sandbox.storage_origin))
    status, document = await post(client, creating, form(("a.jpg", jpeg(1000, 1))))
    assert (status, outcomes(document)) == (422, [("a.jpg", reason)])
    assert [one for one in sandbox.requests if one.origin == "storage"] == []


async def test_repeated_file_name_reaches_the_apis_limit(
    start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """The API's limit for one file name is reported for the photos that exceed it."""
    service = await start_service(admin_token=SecretStr(ADMIN), image_attempts=1)
    status, document = await post(client, service, form(*[("same.jpg", jpeg(1000, n)) for n in range(31)]))
    assert (status, document["uploaded"], document["failed"]) == (201, 30, 1)
    assert outcomes(document)[30] == ("same.jpg", "rate_limited")


@pytest.mark.parametrize(
    ("data", "headers", "status", "slug"),
    [
        pytest.param(b"{}", {"Content-Type": "application/json"}, 415, "unsupported-media-type", id="JSON"),
        pytest.param(form(("a.jpg", b"x")), {"Content-Encoding": "gzip"}, 415, "unsupported-media-type", id="coded"),
        pytest.param(form(name="x"), {}, 400, "invalid-body", id="no file"),
        pytest.param(form(("a.jpg", b"x"), colour="red"), {}, 400, "invalid-body", id="unknown field"),
        pytest.param(form(("a.jpg", b"x"), privacy="maybe"), {}, 400, "invalid-body", id="wrong choice"),
        pytest.param(form(("a.jpg", b"x"), name="x" * 2000), {}, 400, "invalid-body", id="long field"),
        pytest.param(
            b"nonsense", {"Content-Type": "multipart/form-data; boundary=b"}, 400, "invalid-body", id="broken"
        ),
        pytest.param(b"", {"Content-Type": "multipart/form-data"}, 400, "invalid-body", id="no boundary"),
        pytest.param(
            b'--b\r\nContent-Disposition: form-data; name="' + b"x" * 20_000 + b'"\r\n\r\nx\r\n--b--\r\n',
            {"Content-Type": "multipart/form-data; boundary=b"},
            400,
            "invalid-body",
            id="long part headers",
        ),
        pytest.param(
            b"--b\r\n" + b"A: b\r\n" * 1000 + b"\r\nx\r\n--b--\r\n",
            {"Content-Type": "multipart/form-data; boundary=b"},
            400,
            "invalid-body",
            id="many part headers",
        ),
        pytest.param(
            b'--b\r\nContent-Disposition: form-data; name="_charset_"\r\n\r\n\xff\r\n--b--\r\n',
            {"Content-Type": "multipart/form-data; boundary=b"},
            400,
            "invalid-body",
            id="charset that is none",
        ),
        pytest.param(
            b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + jpeg(1000, 1),
            {"Content-Type": "multipart/form-data; boundary=b"},
            400,
            "invalid-body",
            id="cut in a file",
        ),
    ],
)
async def test_invalid_forms_are_rejected(
    data: Any, headers: dict[str, str], status: int, slug: str, creating: str, client: aiohttp.ClientSession
) -> None:
    """A request that is not a valid upload is rejected with a problem."""
    if isinstance(data, aiohttp.FormData):
        data = data()  # a new body: parameters are created once
    found, document = await post(client, creating, data, **headers)
    assert (found, document["type"]) == (status, f"/problems/{slug}")


async def test_truncated_body_lists_the_uploaded_files(
    sandbox: Sandbox, creating: str, client: aiohttp.ClientSession
) -> None:
    """Files uploaded before the body ended early are in the response, with their order."""
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + jpeg(1000, 1) + b"\r\n"
    field = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nlate\r\n--b--\r\n'
    status, document = await post(client, creating, part + field, **{"Content-Type": "multipart/form-data; boundary=b"})
    assert (status, document["type"]) == (400, "/problems/invalid-body")
    assert outcomes(document) == [("a.jpg", None)]
    assert document["order_id"] in sandbox.orders


async def test_listed_files_are_bounded(
    creating: str, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files beyond MAX_UPLOAD_FILES are listed, up to a bound; then the form is rejected, with the files so far."""
    monkeypatch.setattr("service.web.uploads.create_order.MAX_EXCESS_FILES", 2)
    status, document = await post(client, creating, form(*[(f"{n}.jpg", jpeg(1000, n)) for n in range(9)]))
    assert (status, document["type"]) == (400, "/problems/invalid-body")
    assert [reason for _, reason in outcomes(document)] == [*[None] * 5, "too_many", "too_many"]


async def test_upload_requires_admin(creating: str, client: aiohttp.ClientSession, sandbox: Sandbox) -> None:
    """Without the admin token no body is read, and no upstream request is sent."""
    for path in ("create-order", "create-sample-order"):
        async with client.post(f"{creating}/api/{path}", data=form(("a.jpg", jpeg(1000, 1)))) as response:
            assert (response.status, (await response.json())["type"]) == (401, "/problems/admin-required")
    assert sandbox.requests == []


async def test_disconnect_cleans_up(sandbox: Sandbox, creating: str, tmp_path: Path) -> None:
    """A disconnect within a file deletes its temporary file, closes upstream requests, and frees the upload slot."""
    started = asyncio.Event()

    async def endless() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + jpeg(1000, 1)
        started.set()
        await asyncio.Event().wait()

    async with aiohttp.ClientSession() as client:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        leaving = asyncio.create_task(post(client, creating, endless(), **headers))
        await started.wait()
        while not spooled(tmp_path):  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        while spooled(tmp_path):  # noqa: ASYNC110
            await asyncio.sleep(0)
        status, _ = await post(client, creating, form(("b.jpg", jpeg(1000, 2))))
    assert status == 201
    assert sandbox.active_requests == 0


async def test_stalled_upload_times_out(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """A client that stops sending gets a 408, which lists the incomplete file."""
    service = await start_service(admin_token=SecretStr(ADMIN), client_stall_seconds=0.2)
    over = asyncio.Event()

    async def stalling() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + jpeg(1000, 1)
        await over.wait()

    status, document = await post(client, service, stalling(), **{"Content-Type": "multipart/form-data; boundary=b"})
    over.set()
    assert (status, document["type"]) == (408, "/problems/request-body-timeout")
    assert outcomes(document) == [("a.jpg", "incomplete")]
    assert [one for one in sandbox.requests if one.origin == "storage"] == []


async def test_concurrent_uploads_are_limited(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """An upload beyond MAX_CONCURRENT_UPLOADS gets a 503 at once."""
    service = await start_service(admin_token=SecretStr(ADMIN), max_concurrent_uploads=1)
    over, started = asyncio.Event(), asyncio.Event()

    async def waiting() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + jpeg(1000, 1)
        started.set()
        await over.wait()
        yield b"\r\n--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    first = asyncio.create_task(post(client, service, waiting(), **headers))
    await started.wait()
    while True:
        status, document = await post(client, service, form(("b.jpg", jpeg(1000, 2))))
        if status == 503:
            break
    assert document["type"] == "/problems/at-capacity"
    over.set()
    status, _ = await first
    assert status == 201


async def test_uploads_are_counted(sandbox: Sandbox, creating: str, client: aiohttp.ClientSession) -> None:
    """Metrics count uploads by outcome and reason."""
    del sandbox
    await post(client, creating, form(("a.jpg", jpeg(1000, 1)), ("b.jpg", b"")))
    async with client.get(f"{creating}/metrics") as response:
        text = await response.text()
    assert 'batch_uploads_total{outcome="uploaded",reason=""} 1.0' in text
    assert 'batch_uploads_total{outcome="failed",reason="empty"} 1.0' in text
    assert "batch_upload_bytes_total 1000.0" in text


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("a.jpg", "a.jpg"),
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\a.jpg", "a.jpg"),
        ("a\r\nb\x00.jpg", "a  b.jpg"),
        ("", "photo"),
        ("/", "photo"),
        ("x" * 500 + ".jpg", "x" * 196 + ".jpg"),
    ],
)
def test_clean_name_keeps_the_base_name(name: str, cleaned: str) -> None:
    """A file name is reduced to its base name, on one line, with its extension."""
    assert clean_name(name) == cleaned


@pytest.mark.parametrize(
    ("prefix", "accepted"),
    [
        (b"\xff\xd8\xff\xe1", True),
        (b"\x89PNG\r\n\x1a\n", True),
        (b"RIFF\x00\x00\x00\x00WEBP", True),
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00", True),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", True),
        (b"\x00\x00\x00\x18ftypcrx \x00\x00\x00\x01", True),
        (b"II*\x00\x08\x00\x00\x00", True),
        (b"MM\x00*\x00\x00\x00\x08", True),
        (b"FUJIFILMCCD-RAW 0201", True),
        (b"\xff\x0a", False),
        (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00", False),
        (b"%PDF-1.7", False),
        (b"PK\x03\x04", False),
        (b"GIF89a", False),
        (b"", False),
    ],
)
def test_photos_are_recognised_by_their_first_bytes(prefix: bytes, accepted: bool) -> None:  # noqa: FBT001
    """The formats that the API enhances are accepted, others are not."""
    assert is_photo(prefix.ljust(PHOTO_SNIFF_BYTES, b"\0") if prefix else b"") is accepted
