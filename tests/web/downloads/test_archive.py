"""Downloads of archives over real sockets, with the sandbox as the upstream."""

import asyncio
import hashlib
import json
import shutil
import uuid
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
from yarl import URL

from service.archive.report import MANIFEST_NAME, REPORT_NAME
from service.sandbox import (
    DEMO_ORDER_ID,
    EMPTY_ORDER_ID,
    MERGING_ORDER_ID,
    PARTIAL_ORDER_ID,
    Fault,
    Kind,
    Sandbox,
    SandboxImage,
)
from tests.archives import add_order, download, entries, failures_in, images_in, images_url, jpeg, manifest_in
from tests.conftest import StartService
from tests.unzip_tools import CENTRAL_DIRECTORY_READERS, ZipReader

BROKEN = Fault(Kind.STATUS, status=404)


async def test_archive_has_every_image_bit_for_bit(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """The archive has every image of an order with awkward names, as the storage served it, and nothing else."""
    found = await download(client, images_url(service, DEMO_ORDER_ID))
    served = [sandbox.body(image.image_id) for image in sandbox.orders[DEMO_ORDER_ID].images]
    assert sorted(found.values()) == sorted(served)
    assert not {REPORT_NAME, MANIFEST_NAME} & found.keys()


@pytest.mark.parametrize("reader", CENTRAL_DIRECTORY_READERS)
async def test_unzip_program_reads_the_archive(
    reader: ZipReader,
    sandbox: Sandbox,
    service: str,
    client: aiohttp.ClientSession,
    tmp_path: Path,
) -> None:
    """Every program reads the archive of a partly failed order with the same names and bytes."""
    async with client.get(images_url(service, PARTIAL_ORDER_ID)) as response:
        data = await response.read()
    path = tmp_path / "images.zip"
    path.write_bytes(data)
    found = await asyncio.to_thread(reader, path)
    assert found == entries(data)
    ready = [image for image in sandbox.orders[PARTIAL_ORDER_ID].images if image.status == "processed"]
    assert sorted(images_in(found).values()) == sorted(sandbox.body(image.image_id) for image in ready)


async def test_archive_streams_before_the_last_image_is_requested(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """The client gets half of an image before the storage sends the rest, and before the last image is requested."""
    order = add_order(sandbox, [400_000] * 10)
    first, last = order.images[0], order.images[-1]
    gate = sandbox.faults.pause(first.image_id, after_bytes=200_000)
    for image in order.images[1:]:
        sandbox.faults.pause(image.image_id, origin="api")
    async with client.get(images_url(service, order.order_id, "?layout=stored")) as response:
        received = await response.content.readexactly(200_000)
        assert jpeg(400_000)[:190_000] in received
        assert not sandbox.requests_for(first.image_id, "storage")[0].finished
        assert sandbox.requests_for(last.image_id) == []
        gate.release()
        sandbox.faults.release_all()
        received += await response.read()
    assert [hashlib.md5(data).digest() for data in entries(received).values()] == [  # noqa: S324 - compared only
        hashlib.md5(jpeg(400_000, n)).digest()  # noqa: S324
        for n in range(10)
    ]


async def test_slow_image_does_not_delay_the_others(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """The next entry is the first image with buffered bytes; names follow the positions in the order."""
    order = add_order(sandbox, [1000] * 4)
    gate = sandbox.faults.pause(order.images[0].image_id, origin="storage")
    async with client.get(images_url(service, order.order_id)) as response:
        received = await response.content.readuntil(b"3.jpg")
        gate.release()
        received += await response.read()
    assert list(entries(received)) == ["1.jpg", "2.jpg", "3.jpg", "0.jpg"]


async def test_api_key_is_sent_to_the_api_only(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """API key and request id are sent to the API, and neither of them to the storage."""
    async with client.get(images_url(service, DEMO_ORDER_ID), headers={"X-Request-ID": "client-7"}) as response:
        await response.read()
    at_storage = [record for record in sandbox.requests if record.origin == "storage"]
    at_api = [record for record in sandbox.requests if record.origin == "api"]
    assert len(at_storage) == 14
    assert len(at_api) == 15
    assert sandbox.key_leaks == []
    assert not any({"x-api-key", "x-request-id"} & {name.lower() for name in one.headers} for one in at_storage)
    assert {(one.headers["x-api-key"], one.headers["X-Request-ID"]) for one in at_api} == {
        (sandbox.api_key, "client-7")
    }


async def test_options_are_sent_to_the_api(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """Rendering parameters are passed on unchanged, and ``preview`` is always sent."""
    order = add_order(sandbox, [500])
    query = "?format=png&quality=80&max_width=300&scale=0.5&watermark=false&finetune=true&dev_mode=true"
    await download(client, images_url(service, order.order_id, query))
    (request,) = sandbox.requests_for(order.images[0].image_id, "api")
    assert dict(request.query) == {
        "preview": "true",
        "format": "png",
        "quality": "80",
        "max_width": "300",
        "scale": "0.5",
        "watermark": "false",
        "finetune": "true",
    }
    assert request.headers["x-dev-mode"] == "true"


@pytest.mark.parametrize(("form", "extension"), [("png", "png"), ("webp", "webp"), ("avif", "avif"), ("jxl", "jxl")])
async def test_format_determines_the_extension(
    form: str, extension: str, sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """Each format has its own extension."""
    if form not in sandbox.formats:
        pytest.skip(f"no {form} encoder is installed")
    only = sandbox.orders[DEMO_ORDER_ID].images[0].image_id
    found = await download(client, images_url(service, DEMO_ORDER_ID, f"?format={form}&only={only}"))
    assert found == {f"living room.{extension}": sandbox.body(only, form)}


async def test_extension_follows_the_detected_format(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """A JPEG called .png by its uploader, and by its Content-Type, is a .jpg in the archive."""
    order = sandbox.add_order([SandboxImage("plan.png", body=jpeg(900), content_type="image/png")])
    assert await download(client, images_url(service, order.order_id)) == {"plan.jpg": jpeg(900)}


async def test_response_headers(service: str, client: aiohttp.ClientSession) -> None:
    """The response describes the archive, and forbids proxies to buffer or to transform it."""
    async with client.get(images_url(service, DEMO_ORDER_ID)) as response:
        await response.read()
    headers = response.headers
    assert headers["Content-Type"] == "application/zip"
    assert headers["Transfer-Encoding"] == "chunked"
    assert headers["Content-Disposition"].endswith(
        "filename*=UTF-8''" + quote("Haus am Süßbach 12, 客厅_images.zip", safe="")
    )
    assert headers["X-Total-Images"] == "14"
    assert str(uuid.UUID(headers["X-Archive-Id"])) == headers["X-Archive-Id"]
    assert headers["Cache-Control"] == "no-store, no-transform"
    assert headers["X-Accel-Buffering"] == "no"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Trailer"] == "X-Downloaded, X-Failed"
    assert "Content-Encoding" not in headers


async def raw_exchange(service: str, target: str, version: str = "1.1") -> bytes:
    """Send a request over a raw socket and return all bytes of the response."""
    host, port = service.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {target} HTTP/{version}\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_trailers_follow_the_last_chunk(service: str) -> None:
    """Trailers with the counts of the archive follow the last chunk (RFC 9112 section 7.1.2)."""
    response = await raw_exchange(service, f"/orders/{PARTIAL_ORDER_ID}/images")
    assert response.endswith(b"\r\n0\r\nX-Downloaded: 3\r\nX-Failed: 4\r\n\r\n")


async def test_http_1_0_gets_an_archive_without_chunks(service: str, sandbox: Sandbox) -> None:
    """An HTTP/1.0 client gets the archive without chunks, delimited by the end of the connection."""
    response = await raw_exchange(service, f"/orders/{DEMO_ORDER_ID}/images", version="1.0")
    header, _, body = response.partition(b"\r\n\r\n")
    assert b"chunked" not in header
    assert len(entries(body)) == len(sandbox.orders[DEMO_ORDER_ID].images)


async def test_head_requests_no_image(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """HEAD has the status and headers of the download, and costs one order look-up."""
    async with client.head(images_url(service, DEMO_ORDER_ID, "?preview=false")) as response:
        assert response.status == 200
        assert response.headers["X-Total-Images"] == "14"
        assert response.headers["Content-Type"] == "application/zip"
    assert [record.origin for record in sandbox.requests] == ["api"]
    assert sandbox.credits_spent == 0


async def test_head_of_an_invalid_request_has_no_body(service: str, client: aiohttp.ClientSession) -> None:
    """HEAD of an invalid request has the error's status and no body."""
    async with client.head(images_url(service, DEMO_ORDER_ID, "?format=tiff")) as response:
        assert response.status == 400
        assert await response.read() == b""


async def test_partial_order_has_a_report(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """Report and manifest list missing images with their reasons and the URL to download exactly these."""
    found = await download(client, images_url(service, PARTIAL_ORDER_ID, "?quality=50"))
    assert failures_in(found) == {
        "garage.jpg": "not_ready",
        "cellar.jpg": "processing_failed",
        "attic.jpg": "expired",
        "balcony.jpg": "not_ready",
    }
    report = found[REPORT_NAME].decode()
    assert "3 of 7 images are in this archive." in report
    assert "The image could not be decoded" in report
    manifest = manifest_in(found)
    assert manifest["parameters"] == {"quality": "50"}
    (retry_url,) = manifest["retry_urls"]
    assert retry_url in report
    for image in sandbox.orders[PARTIAL_ORDER_ID].images:
        image.status = "processed"
    async with client.get(retry_url) as response:
        retried = entries(await response.read())
    assert sorted(retried) == ["attic.jpg", "balcony.jpg", "cellar.jpg", "garage.jpg"]


async def test_manifest_always_has_checksums(service: str, client: aiohttp.ClientSession) -> None:
    """``manifest=always`` lists the size, CRC-32 and SHA-256 of every image in the archive."""
    found = await download(client, images_url(service, DEMO_ORDER_ID, "?manifest=always"))
    images = manifest_in(found)["images"]
    assert len(images) == 14
    for image in images:
        data = found[image["entry"]]
        assert (image["size"], image["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


async def test_only_keeps_the_names_of_the_full_archive(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """Selected images have the names that they have in the full archive."""
    ids = [image.image_id for image in sandbox.orders[DEMO_ORDER_ID].images]
    found = await download(client, images_url(service, DEMO_ORDER_ID, f"?only={ids[3]}&only={ids[2]}"))
    assert sorted(found) == ["Kitchen_3.jpg", "kitchen_2.jpg"]


async def test_failed_image_does_not_affect_the_others(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """Only the failed image is missing from the archive."""
    order = add_order(sandbox, [3000] * 5)
    sandbox.faults.always(order.images[2].image_id, BROKEN, origin="api")
    found = await download(client, images_url(service, order.order_id))
    assert images_in(found) == {f"{n}.jpg": jpeg(3000, n) for n in (0, 1, 3, 4)}
    assert failures_in(found) == {"2.jpg": "not_found"}


async def test_order_without_available_images_is_a_422(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """When every image fails, the response is a 422 with all reasons, not an empty archive."""
    order = add_order(sandbox, [3000] * 3)
    for image in order.images:
        sandbox.faults.always(image.image_id, BROKEN, origin="api")
    async with client.get(images_url(service, order.order_id)) as response:
        assert response.status == 422
        problem = await response.json(content_type="application/problem+json")
    assert problem["type"] == "/problems/no-images-available"
    assert [(one["name"], one["reason"], one["upstream_status"]) for one in problem["failures"]] == [
        (f"{n}.jpg", "not_found", 404) for n in range(3)
    ]


async def test_on_error_abort_before_the_first_byte_is_a_422(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """With ``on_error=abort`` an image known to be missing is a 422, since no byte was sent."""
    async with client.get(images_url(service, PARTIAL_ORDER_ID, "?on_error=abort")) as response:
        assert response.status == 422
        problem = await response.json(content_type="application/problem+json")
    assert len(problem["failures"]) == 4
    assert [record.origin for record in sandbox.requests] == ["api"]


async def test_on_error_abort_after_the_first_byte_aborts_the_response(
    sandbox: Sandbox, service: str, tmp_path: Path
) -> None:
    """With ``on_error=abort`` a later failure aborts the transfer: curl exits with 18 (partial file)."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    order = add_order(sandbox, [100_000] * 3)
    first = sandbox.faults.pause(order.images[0].image_id, after_bytes=50_000)
    second = sandbox.faults.pause(order.images[1].image_id, origin="api")
    url = images_url(service, order.order_id, "?on_error=abort")
    curl = await asyncio.create_subprocess_exec("curl", "-sSN", "-o", str(tmp_path / "images.zip"), str(url))
    await first.reached.wait()
    await second.reached.wait()
    sandbox.set_status(order.images[1].image_id, "expired")
    second.release()
    await sandbox.wait_until(lambda: all(one.finished for one in sandbox.requests_for(order.images[1].image_id)))
    first.release()
    assert await curl.wait() == 18


async def test_disconnect_ends_the_upstream_requests(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """When the client disconnects, every upstream request of its archive ends, also while no byte is written."""
    order = add_order(sandbox, [400_000] * 8)
    for image in order.images:
        sandbox.faults.pause(image.image_id, after_bytes=1000)
    response = await client.get(images_url(service, order.order_id))
    await response.content.readexactly(1000)
    await sandbox.wait_until(lambda: sandbox.active_requests == 5)
    response.close()
    await sandbox.wait_until(lambda: sandbox.active_requests == 0)
    assert sum(record.origin == "storage" for record in sandbox.requests) == 5


@pytest.mark.parametrize(
    ("path", "slug"),
    [
        pytest.param("/orders/42/images", "invalid-order-id", id="not a UUID"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}x/images", "invalid-order-id", id="longer than a UUID"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}%0a/images", "invalid-order-id", id="line feed behind it"),
        pytest.param("/orders/..%2f..%2fetc/images", "invalid-order-id", id="path characters"),
        pytest.param(f"/orders/%7B{DEMO_ORDER_ID}%7D/images", "invalid-order-id", id="braces"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/images?format=tiff", "invalid-parameter", id="unknown format"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/images?quality=91", "invalid-parameter", id="quality above 90"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/images?quality=0", "invalid-parameter", id="quality 0"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/images?preview=no", "invalid-parameter", id="preview=no"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/images?preview=", "invalid-parameter", id="preview empty"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/images?scale=1.1", "invalid-parameter", id="scale above 1"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/images?scale=nan", "invalid-parameter", id="scale not a number"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/images?max_width=0", "invalid-parameter", id="no width"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/images?previw=false", "unknown-parameter", id="misspelt"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/images?Preview=false", "unknown-parameter", id="wrong case"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/images?preview=true&preview=false", "repeated-parameter", id="repeated"),
        pytest.param(f"/orders/{DEMO_ORDER_ID}/images?only=", "invalid-parameter", id="only empty"),
    ],
)
async def test_invalid_input_is_rejected_before_an_upstream_request(
    path: str, slug: str, sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """Invalid input is a 400 that names the parameter, before any upstream request."""
    async with client.get(URL(service + path, encoded=True)) as response:
        assert response.status == 400
        assert response.content_type == "application/problem+json"
        problem = json.loads(await response.text())
    assert problem["type"] == f"/problems/{slug}"
    assert problem["status"] == 400
    if slug != "invalid-order-id":
        assert problem["parameter"] == URL(path).query_string.partition("=")[0]
    assert sandbox.requests == []


async def test_only_with_an_unknown_image_is_rejected(
    sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """An id that is not in the order is a 400 that names it, and no image is requested."""
    async with client.get(images_url(service, DEMO_ORDER_ID, "?only=not-there")) as response:
        assert response.status == 400
        problem = await response.json(content_type="application/problem+json")
    assert (problem["type"], problem["image_id"]) == ("/problems/image-not-in-order", "not-there")
    assert [record.origin for record in sandbox.requests] == ["api"]


@pytest.mark.parametrize(
    ("order_id", "status", "slug"),
    [
        pytest.param("00000000-0000-4000-8000-000000000000", 404, "order-not-found", id="unknown"),
        pytest.param(EMPTY_ORDER_ID, 404, "order-empty", id="empty"),
        pytest.param(MERGING_ORDER_ID, 409, "order-not-ready", id="merging"),
    ],
)
async def test_order_without_images_is_a_problem(
    order_id: str, status: int, slug: str, service: str, client: aiohttp.ClientSession
) -> None:
    """An unknown, an empty and a merging order have different problems."""
    async with client.get(images_url(service, order_id)) as response:
        assert response.status == status
        assert (await response.json(content_type="application/problem+json"))["type"] == f"/problems/{slug}"
        assert ("Retry-After" in response.headers) is (status == 409)


async def test_order_above_the_image_limit_is_a_413(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """An order above the limit is a 413; a selection of its images can be downloaded."""
    service = await start_service(max_images_per_order=3)
    order = add_order(sandbox, [500] * 4)
    async with client.get(images_url(service, order.order_id)) as response:
        assert response.status == 413
    ids = "&".join(f"only={image.image_id}" for image in order.images[:3])
    assert len(await download(client, images_url(service, order.order_id, f"?{ids}"))) == 3


NAMES = [
    ("../../x.jpg", "x.jpg"),
    ("C:\\x.jpg", "x.jpg"),
    ("nul\0byte.jpg", "nulbyte.jpg"),
    ("a" * 300 + ".jpg", "a" * 195 + ".jpg"),
    ("🏡✨.jpg", "🏡✨.jpg"),
    ("evil\u202egpj.exe", "evilgpj.exe.jpg"),
    ("CON", "CON_.jpg"),
    ("", "image.jpg"),
]


async def test_unsafe_names_are_sanitized(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    """Unsafe names are replaced by safe ones, and no image is lost for its name."""
    order = sandbox.add_order([SandboxImage(name, body=jpeg(500)) for name, _ in NAMES])
    found = await download(client, images_url(service, order.order_id))
    expected = [safe for _, safe in NAMES]
    expected[1] = "x_2.jpg"
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    "name",
    [
        'say "cheese"',
        "line\r\nX-Evil: 1",
        "back\\slash",
        "tab\tbell\a",
        "",
        "   ",
        "名前",
        "\ud83d",
        "a" * 5000,
        "/../",
    ],
    ids=lambda name: ascii(name[:20]),
)
async def test_order_name_cannot_inject_a_header(
    name: str, sandbox: Sandbox, service: str, client: aiohttp.ClientSession
) -> None:
    """Content-Disposition is one valid header with a ``.zip`` file name for any name of the order."""
    order = add_order(sandbox, [500], name=name)
    async with client.get(images_url(service, order.order_id)) as response:
        assert response.status == 200
        await response.read()
    disposition = response.content_disposition
    assert disposition is not None
    assert disposition.type == "attachment"
    assert disposition.filename is not None
    assert disposition.filename.endswith("_images.zip")
    assert not set('\\/"\r\n\t') & set(disposition.filename)
    assert "X-Evil" not in response.headers


@pytest.mark.parametrize(
    ("fault", "status", "slug"),
    [
        pytest.param(Fault(Kind.STATUS, status=401), 502, "upstream-unauthorized", id="401"),
        pytest.param(Fault(Kind.STATUS, status=403), 502, "upstream-unauthorized", id="403"),
        pytest.param(Fault(Kind.STATUS, status=404), 404, "order-not-found", id="404"),
        pytest.param(Fault(Kind.STATUS, status=500), 502, "upstream-failed", id="500"),
        pytest.param(Fault(Kind.STATUS, status=503, json_body=False), 502, "upstream-failed", id="503 not JSON"),
        pytest.param(Fault(Kind.STATUS, status=418), 502, "upstream-failed", id="418"),
        pytest.param(Fault(Kind.RESET), 502, "upstream-failed", id="reset"),
        pytest.param(Fault(Kind.STALL), 504, "upstream-timeout", id="stall"),
        pytest.param(Fault(Kind.NOT_JSON), 502, "upstream-invalid-response", id="not JSON"),
        pytest.param(Fault(Kind.WRONG_SHAPE), 502, "upstream-invalid-response", id="wrong shape"),
        pytest.param(Fault(Kind.HTML), 502, "upstream-invalid-response", id="HTML with 200"),
    ],
)
async def test_failed_order_look_up_is_a_problem(
    fault: Fault, status: int, slug: str, sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Each failure of the look-up has its documented status and problem."""
    service = await start_service(image_timeout_seconds=0.3)
    sandbox.faults.order(DEMO_ORDER_ID, [fault] * 10)
    async with client.get(images_url(service, DEMO_ORDER_ID)) as response:
        assert response.status == status
        problem = await response.json(content_type="application/problem+json")
    assert problem["type"] == f"/problems/{slug}"
    assert sandbox.api_key not in json.dumps(problem)


async def test_unreachable_upstream_is_a_502(
    start_service: StartService, client: aiohttp.ClientSession, closed_port: int
) -> None:
    """An upstream that refuses connections is a 502."""
    service = await start_service(autoenhance_api_base=f"http://127.0.0.1:{closed_port}/v3")
    async with client.get(images_url(service, DEMO_ORDER_ID)) as response:
        assert response.status == 502


async def test_missing_api_key_is_a_503(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Without an API key the response is a 503, and no upstream request is sent."""
    service = await start_service(autoenhance_api_key=None)
    async with client.get(images_url(service, DEMO_ORDER_ID)) as response:
        assert response.status == 503
        assert (await response.json(content_type="application/problem+json"))[
            "type"
        ] == "/problems/api-key-not-configured"
    assert sandbox.requests == []


async def test_late_first_byte_is_a_504(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """After FIRST_BYTE_SECONDS the response is a 504 that lists the images failed so far."""
    service = await start_service(first_byte_seconds=0.5)
    order = add_order(sandbox, [500] * 2)
    sandbox.faults.always(order.images[0].image_id, BROKEN, origin="api")
    sandbox.faults.pause(order.images[1].image_id)
    async with client.get(images_url(service, order.order_id)) as response:
        assert response.status == 504
        problem = await response.json(content_type="application/problem+json")
    assert problem["type"] == "/problems/first-byte-timeout"
    assert [one["name"] for one in problem["failures"]] == ["0.jpg"]
    await sandbox.wait_until(lambda: sandbox.active_requests == 0)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-123", True), ("x" * 129, False), ("two words", False), ("semi;colon", False), ("", False)],
)
async def test_valid_request_id_is_kept(given: str, kept: bool, service: str, client: aiohttp.ClientSession) -> None:  # noqa: FBT001
    """A valid request id is used and returned; an invalid one is replaced."""
    async with client.get(f"{service}/health", headers={"X-Request-ID": given}) as response:
        assert (response.headers["X-Request-ID"] == given) is kept
        assert response.headers["X-Request-ID"]


async def test_router_errors_are_problem_documents(service: str, client: aiohttp.ClientSession) -> None:
    """The response to an unknown path or method is a problem document."""
    async with client.get(f"{service}/nothing") as response:
        assert response.status == 404
        assert (await response.json(content_type="application/problem+json"))["type"] == "/problems/not-found"
    async with client.delete(f"{service}/health") as response:
        assert response.status == 405
        assert (await response.json(content_type="application/problem+json"))["allowed"] == ["GET", "HEAD"]
