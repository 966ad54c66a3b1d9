"""``/openapi.json`` matches the service: routes, parameters and problems, and every response in it is provoked."""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from openapi_spec_validator import validate
from pydantic import SecretStr

from service.app import create_app
from service.archive.parameters import PARAMETERS, parse_parameters
from service.errors import InvalidParameter, ServiceError, concrete_errors
from service.sandbox import (
    ANY_IMAGE,
    DEMO_ORDER_ID,
    EMPTY_ORDER_ID,
    MERGING_ORDER_ID,
    PARTIAL_ORDER_ID,
    Fault,
    Kind,
    Sandbox,
    SandboxImage,
)
from service.settings import Settings
from service.web.auth.guards import LINK
from service.web.downloads.archive import TRAILERS
from service.web.openapi.document import OPERATIONS, openapi_document
from service.web.site.docs import ASSETS
from tests.archives import add_order, entries, jpeg
from tests.conftest import StartService
from tests.fakes.sentry import running_sentry
from tests.monitoring.test_sentry import ADMIN, AS_ADMIN, issue_settings
from tests.web.openapi.response_validator import ResponseValidator, send

DOCUMENT = openapi_document("1.2.3")
# Pages and their parts: not an interface for programs.
NOT_DESCRIBED = {"/", "/docs", "/docs/{asset}", "/static/{name}"}
# Problems that belong to no operation, or to all of them.
OF_NO_OPERATION = {"bad-request", "method-not-allowed", "internal-error"}
UNKNOWN = "5a4d0b0c-0000-4000-8000-00000000ffff"
SECRET = "secret-of-the-webhook"
WITH_ADMIN = {"admin_token": SecretStr(ADMIN)}
SHORT_BODY_TIMEOUT: dict[str, Any] = {"request_body_timeout_seconds": 0.1}
SIGNING = {"signing_keys": (SecretStr("s" * 32),)}
PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + jpeg(1000, 1)
MULTIPART = {"Content-Type": "multipart/form-data; boundary=b", **AS_ADMIN}


def operations_by_id() -> dict[str, dict[str, Any]]:
    """Return every operation of the document by its id."""
    return {one["operationId"]: one for path in DOCUMENT["paths"].values() for one in path.values()}


def test_document_is_valid_openapi() -> None:
    """The document is OpenAPI 3.1; each operation has a unique id, a summary and a description."""
    validate(DOCUMENT)
    assert len(operations_by_id()) == len(OPERATIONS)
    assert all(one["summary"] and one["description"] for one in operations_by_id().values())
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    assert {tag for one in operations_by_id().values() for tag in one["tags"]} == tags


def test_document_has_every_route() -> None:
    """Every route and method of the app is described or listed as not described; HEAD follows from GET."""
    routes = {
        (route.method, route.resource.canonical)
        for route in create_app(Settings()).router.routes()
        if route.resource is not None and route.resource.canonical not in NOT_DESCRIBED
    }
    written = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert written <= routes
    assert {(method, path) for method, path in routes - written if method != "HEAD"} == set()
    assert {route.resource.canonical for route in create_app(Settings()).router.routes() if route.resource} >= (
        NOT_DESCRIBED
    )


@pytest.mark.parametrize(
    ("operation_id", "names"),
    [
        ("downloadOrder", {*PARAMETERS, LINK}),
        ("probeOrder", {*PARAMETERS, LINK}),
        ("downloadMissing", {*PARAMETERS, LINK} - {"only"}),
        ("getOrder", {*PARAMETERS}),
    ],
)
def test_download_has_the_parameters_of_the_parser(operation_id: str, names: set[str]) -> None:
    """The operations of a download have exactly the parameters that the parser accepts."""
    parameters = operations_by_id()[operation_id]["parameters"]
    assert {one["name"] for one in parameters if one["in"] == "query"} == names


@pytest.mark.parametrize("parameter", operations_by_id()["getOrder"]["parameters"][1:], ids=lambda one: one["name"])
def test_parameter_schema_matches_the_parser(parameter: dict[str, Any]) -> None:
    """The parser accepts what the schema allows and rejects what it forbids; the default equals an absent parameter."""
    schema, name = parameter["schema"], parameter["name"]
    good, bad = _samples(schema)
    for text in good:
        parse_parameters([(name, text)])
    for text in bad:
        with pytest.raises(InvalidParameter):
            parse_parameters([(name, text)])
    if "default" in schema:
        written = str(schema["default"])
        given = parse_parameters([(name, written.lower() if schema["type"] == "boolean" else written)])
        assert given == parse_parameters([])


def _samples(schema: dict[str, Any]) -> tuple[list[str], list[str]]:
    if "enum" in schema:
        return schema["enum"], ["other", "", schema["enum"][0].upper()]
    if schema["type"] == "integer":
        low, high = schema["minimum"], schema["maximum"]
        return [str(low), str(high)], [str(low - 1), str(high + 1), "1.5", "x", ""]
    if schema["type"] == "number":
        return ["0.001", "1"], ["0", "1.001", "-1", "x"]
    if schema["type"] == "boolean":
        return ["true", "false", "1", "0"], ["2", "yes", ""]
    if schema.get("format") == "uuid":
        return [DEMO_ORDER_ID], ["x", ""]
    assert schema["type"] == "array"
    return ["x"], [""]


def test_document_has_every_problem() -> None:
    """Every problem type has a valid example with its title and status, and belongs to an operation."""
    errors = {error.slug: error for error in concrete_errors()}
    examples = DOCUMENT["components"]["examples"]
    assert set(examples) == set(errors)
    validator = ResponseValidator(DOCUMENT)
    for slug, example in examples.items():
        validator.validate_value({"$ref": "#/components/schemas/Problem"}, example["value"])
        assert (example["value"]["title"], example["value"]["status"]) == (errors[slug].title, errors[slug].status)
    of_operations = {error for operation in OPERATIONS for error in operation.problems}
    assert {error.slug for error in concrete_errors(ServiceError) if error not in of_operations} == OF_NO_OPERATION


def test_body_examples_match_their_schemas() -> None:
    """Each example of a request body is valid."""
    validator = ResponseValidator(DOCUMENT)
    for operation in operations_by_id().values():
        for media in operation.get("requestBody", {}).get("content", {}).values():
            values = [one["value"] for one in media.get("examples", {}).values()]
            for value in [*values, *([media["example"]] if "example" in media else [])]:
                validator.validate_value(media["schema"], value)


def test_every_component_is_referenced() -> None:
    """No component is unused, and no reference is dangling."""
    text = json.dumps(DOCUMENT)
    referred = set(re.findall(r'"\$ref": "#/components/(\w+)/([\w-]+)"', text))
    schemes = {name for one in operations_by_id().values() for need in one["security"] for name in need}
    there = {(kind, name) for kind, parts in DOCUMENT["components"].items() for name in parts}
    unreferred = {(kind, name) for kind, name in there - referred if kind != "securitySchemes"}
    assert unreferred == {("examples", slug) for slug in OF_NO_OPERATION - {"bad-request", "internal-error"}}
    assert referred <= there
    assert schemes == set(DOCUMENT["components"]["securitySchemes"])


# Scenarios that provoke every response.


@dataclass
class World:
    """The parts of a scenario: upstream, services, client and validator."""

    sandbox: Sandbox
    start: StartService
    client: aiohttp.ClientSession
    validator: ResponseValidator
    monkeypatch: pytest.MonkeyPatch

    async def request(self, method: str, url: str, status: int, **options: Any) -> bytes:
        """Send a request and validate its response."""
        return (await send(self.validator, self.client, method, url, status, **options))[1]


@pytest.fixture
async def world(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> World:
    """The sandbox and a new validator."""
    return World(sandbox, start_service, client, ResponseValidator(DOCUMENT), monkeypatch)


async def invalid_keys(world: World, method: str, path: str, **options: Any) -> None:
    """No key, an invalid key, and too many invalid keys."""
    locked = await world.start(service_api_keys=(SecretStr("a-key-of-the-service"),), auth_failures_per_minute=1)
    wrong = {**options.pop("headers", {}), "X-API-Key": "wrong"}
    for status, headers in ((401, {}), (401, wrong), (429, wrong)):
        await world.request(method, locked + path, status, headers=headers, **options)


async def too_many_failures(world: World, method: str, path: str) -> None:
    """Too many invalid keys, where none is required."""
    service = await world.start(**WITH_ADMIN, auth_failures_per_minute=1)
    wrong = {"X-API-Key": "wrong"}
    async with world.client.request(method, service + path, headers=wrong) as response:
        await response.read()
    await world.request(method, service + path, 429, headers=wrong)


async def invalid_admin_tokens(world: World, method: str, path: str) -> None:
    """No admin token, none configured, and too many invalid ones."""
    service = await world.start(**WITH_ADMIN, auth_failures_per_minute=1)
    await world.request(method, service + path, 401)
    await world.request(method, await world.start() + path, 503)
    await too_many_failures(world, method, path)


async def failed_lookups(world: World, method: str, service: str, path: str, **options: Any) -> None:
    """Each failure of the order look-up."""
    await world.request(method, await world.start(autoenhance_api_key=None) + path, 503, **options)
    await world.request(method, service + path.replace(DEMO_ORDER_ID, UNKNOWN), 404, **options)
    for faults, status in (
        ([Fault(Kind.STATUS, status=401)], 502),
        ([Fault(Kind.NOT_JSON)], 502),
        ([Fault(Kind.RESET)] * 2, 502),  # the first one, on a reused connection, is repeated for free
        ([Fault(Kind.STALL)], 504),
    ):
        world.sandbox.faults.order(DEMO_ORDER_ID, faults)
        await world.request(method, service + path, status, **options)


async def rejected_downloads(world: World, method: str, **options: Any) -> None:
    """Every rejection before the first byte."""
    path = f"/orders/{DEMO_ORDER_ID}/images"
    service = await world.start(image_attempts=1, image_timeout_seconds=1, max_images_per_order=20)
    await invalid_keys(world, method, path, **options)
    await failed_lookups(world, method, service, path, **options)
    for query in ("quality=0", "colour=1", "preview=true&preview=true"):
        await world.request(method, f"{service}{path}?{query}", 400, **options)
    await world.request(method, f"{service}/orders/x/images", 400, **options)
    await world.request(method, f"{service}{path}?preview=false&max_credits=0", 402, **options)
    await world.request(method, f"{await world.start(allow_full_quality=False)}{path}?preview=false", 403, **options)
    await world.request(method, service + path, 412, headers={"If-Match": '"x"'}, **options)
    await invalid_links(world, method, path, **options)
    await world.request(method, f"{service}/orders/{EMPTY_ORDER_ID}/images", 404, **options)
    await world.request(method, f"{service}/orders/{MERGING_ORDER_ID}/images", 409, **options)
    many = add_order(world.sandbox, [10] * 21)
    lost = world.sandbox.add_order([SandboxImage("a.jpg", status="error")])
    if method != "POST":  # whose body names images
        await world.request(method, f"{service}{path}?only=x", 400, **options)
        await world.request(method, f"{service}/orders/{many.order_id}/images", 413, **options)
        await world.request(method, f"{service}/orders/{lost.order_id}/images", 422, **options)
    else:
        for order, status in ((many, 413), (lost, 422)):
            body = {"only": [image.image_id for image in order.images]}
            await world.request(method, f"{service}/orders/{order.order_id}/images", status, json=body)
    await at_capacity(world, method, path, **options)


async def invalid_links(world: World, method: str, path: str, **options: Any) -> None:
    """A changed link and an expired one."""
    service = await world.start(**SIGNING)
    await world.request(method, f"{service}{path}?link=x", 403, **options)
    async with world.client.post(f"{service}/orders/{DEMO_ORDER_ID}/links", json={"expires_in_seconds": 1}) as response:
        url = (await response.json())["url"]
    with world.monkeypatch.context() as later:
        later.setattr("time.time", lambda: 2e9)
        other = await world.start(**SIGNING)
        await world.request(method, f"{other}{path}?link={url.partition('link=')[2]}", 403, **options)


async def at_capacity(world: World, method: str, path: str, **options: Any) -> None:
    """All slots are in use."""
    service = await world.start(max_archives=1)
    order = add_order(world.sandbox, [3000])
    gate = world.sandbox.faults.pause(order.images[0].image_id, after_bytes=1000)
    async with world.client.get(f"{service}/orders/{order.order_id}/images") as first:
        await world.request(method, service + path, 503, **options)
        gate.release()
        await first.read()


async def no_first_byte(world: World, method: str, **options: Any) -> None:
    """No image byte arrives in time."""
    service = await world.start(first_byte_seconds=0.3)
    order = add_order(world.sandbox, [500])
    gate = world.sandbox.faults.pause(order.images[0].image_id)
    body = {"json": {"only": [order.images[0].image_id]}} if method == "POST" else {}
    await world.request(method, f"{service}/orders/{order.order_id}/images", 504, **{**options, **body})
    gate.release()


async def download_order(world: World) -> None:
    service = await world.start()
    body = await world.request("GET", f"{service}/orders/{PARTIAL_ORDER_ID}/images?archive_id={UNKNOWN}", 200)
    assert "_manifest.json" in entries(body)
    await world.request("GET", f"{service}/orders/{PARTIAL_ORDER_ID}/images?archive_id={UNKNOWN}", 409)
    await no_first_byte(world, "GET")
    await rejected_downloads(world, "GET")


async def probe_order(world: World) -> None:
    service = await world.start()
    await world.request("HEAD", f"{service}/orders/{PARTIAL_ORDER_ID}/images", 200)
    await rejected_downloads(world, "HEAD")


async def download_missing(world: World) -> None:
    service = await world.start()
    image = world.sandbox.orders[DEMO_ORDER_ID].images[0].image_id
    url = f"{service}/orders/{DEMO_ORDER_ID}/images"
    options: dict[str, Any] = {"json": {"only": [image]}}
    await world.request("POST", url, 200, data={"only": image})
    await world.request("POST", f"{url}?archive_id={UNKNOWN}", 200, **options)
    await world.request("POST", f"{url}?archive_id={UNKNOWN}", 409, **options)
    await world.request("POST", url, 204, json={"order_id": DEMO_ORDER_ID, "missing": []})
    await world.request("POST", url, 400, data=b"nonsense")
    await world.request("POST", url, 400, json={"only": ["x"]})
    await stalled(world, f"{await world.start(**SHORT_BODY_TIMEOUT)}/orders/{DEMO_ORDER_ID}/images", b"{")
    await no_first_byte(world, "POST")
    await rejected_downloads(world, "POST", **options)


async def stalled(world: World, url: str, start: bytes, **headers: str) -> None:
    """A request body that stalls."""
    over = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield start
        await over.wait()

    async with world.client.post(url, data=body(), headers=headers) as response:
        body_bytes = await response.read()
        world.validator.validate("POST", response.url, response.status, response.headers, body_bytes)
        over.set()
    assert response.status == 408


async def get_order(world: World) -> None:
    service, path = await world.start(image_attempts=1, image_timeout_seconds=1), f"/orders/{DEMO_ORDER_ID}"
    for order_id in (DEMO_ORDER_ID, PARTIAL_ORDER_ID, EMPTY_ORDER_ID, MERGING_ORDER_ID):
        await world.request("GET", f"{service}/orders/{order_id}", 200)
    for wrong in ("/orders/x", f"{path}?quality=0", f"{path}?colour=1", f"{path}?wait=1&wait=2", f"{path}?only=x"):
        await world.request("GET", service + wrong, 400)
    await invalid_keys(world, "GET", path)
    await failed_lookups(world, "GET", service, path)


async def create_link(world: World) -> None:
    service, path = await world.start(**SIGNING), f"/orders/{DEMO_ORDER_ID}/links"
    await world.request("POST", service + path, 201, json={"parameters": {"quality": 80}})
    for body in (b"nonsense", b'{"parameters": {"quality": 0}}', b'{"parameters": {"colour": 1}}', b"x" * 70_000):
        await world.request("POST", service + path, 400, data=body)
    await world.request("POST", service + path, 400, data=b'{"parameters": {"quality": [1, 2]}}')
    await world.request("POST", f"{service}/orders/x/links", 400)
    cheap = await world.start(**SIGNING, allow_full_quality=False)
    await world.request("POST", cheap + path, 403, json={"parameters": {"preview": False}})
    await world.request("POST", await world.start() + path, 503)
    await stalled(world, await world.start(**SIGNING, **SHORT_BODY_TIMEOUT) + path, b"{")
    await invalid_keys(world, "POST", path)


async def get_thumbnail(world: World) -> None:
    service = await world.start(image_attempts=1)
    image = world.sandbox.orders[DEMO_ORDER_ID].images[0].image_id
    path = f"/images/{image}/preview"
    await world.request("GET", service + path, 200)
    await world.request("GET", f"{service}/images/unknown/preview", 502)
    await world.request("GET", await world.start(autoenhance_api_key=None) + path, 503)
    await invalid_keys(world, "GET", path)
    with world.monkeypatch.context() as full:
        full.setattr("service.web.orders.context.MAX_THUMBNAILS", 0)
        await world.request("GET", await world.start() + path, 503)


async def get_receipt(world: World) -> None:
    service = await world.start()
    async with world.client.get(f"{service}/orders/{PARTIAL_ORDER_ID}/images?manifest=always") as response:
        archive_id = response.headers["X-Archive-Id"]
        await response.read()
    await world.request("GET", f"{service}/archives/{archive_id}", 200)
    await rejected_receipts(world, service, "")


async def rejected_receipts(world: World, service: str, ending: str) -> None:
    """Receipts that do not exist or require a key."""
    await world.request("GET", f"{service}/archives/x{ending}", 400)
    await world.request("GET", f"{service}/archives/{uuid.uuid4()}{ending}", 404)
    await invalid_keys(world, "GET", f"/archives/{uuid.uuid4()}{ending}")
    await invalid_links(world, "GET", f"/archives/{uuid.uuid4()}{ending}")


async def watch_download(world: World) -> None:
    world.monkeypatch.setattr("service.web.downloads.events.APPEARANCE_SECONDS", 0.1)
    service = await world.start(image_attempts=1)
    order = add_order(world.sandbox, [200_000, 500, 600])
    world.sandbox.faults.always(order.images[1].image_id, Fault(Kind.STATUS, status=404), origin="api")
    gate = world.sandbox.faults.pause(order.images[0].image_id, after_bytes=100_000)
    archive = await world.client.get(f"{service}/orders/{order.order_id}/images")
    path = f"/archives/{archive.headers['X-Archive-Id']}/events"
    async with world.client.get(service + path) as watching:
        first = await watching.content.readuntil(b"event: snapshot")
        gate.release()
        await archive.read()
        text = (first + await watching.read()).decode()
        world.validator.validate("GET", watching.url, watching.status, watching.headers, text.encode())
    schemas = operations_by_id()["watchDownload"]["responses"]["200"]["x-events"]
    found = re.findall(r"^event: (\w+)\ndata: (.+)$", text, re.MULTILINE)
    for kind, data in found:
        world.validator.validate_value(schemas[kind], json.loads(data))
    assert {"snapshot", "image", "end"} <= {kind for kind, _ in found}
    last = re.findall(r"^id: (\d+)$", text, re.MULTILINE)[-1]
    await world.request("GET", service + path, 204, headers={"Last-Event-ID": last})
    await rejected_receipts(world, service, "/events")
    world.monkeypatch.setattr("service.web.downloads.context.MAX_EVENT_STREAMS", 0)
    await world.request("GET", await world.start() + path, 503)


async def create_order(world: World) -> None:
    path = "/api/create-order"
    await invalid_admin_tokens(world, "POST", path)
    service = await world.start(**WITH_ADMIN, client_stall_seconds=0.2)
    url, end = service + path, b"\r\n--b--\r\n"
    await world.request("POST", url, 201, data=PART + end, headers=MULTIPART)
    field = b'\r\n--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nlate'
    await world.request("POST", url, 400, data=PART + field + end, headers=MULTIPART)
    await world.request("POST", url, 400, data=b"nonsense", headers=MULTIPART)
    await world.request("POST", url, 415, json={}, headers=AS_ADMIN)
    await world.request("POST", url, 422, data=PART[:73] + b"text" + end, headers=MULTIPART)
    await stalled(world, url, PART, **MULTIPART)
    await rejected_uploads(world, path)


async def rejected_uploads(world: World, path: str) -> None:
    """No API key, and no free slot."""
    keyless = await world.start(**WITH_ADMIN, autoenhance_api_key=None)
    await world.request("POST", keyless + path, 503, headers=AS_ADMIN)
    service, over, begun = await world.start(**WITH_ADMIN, max_concurrent_uploads=1), asyncio.Event(), asyncio.Event()

    async def waiting() -> AsyncIterator[bytes]:
        yield PART
        begun.set()
        await over.wait()

    first = asyncio.create_task(world.client.post(service + "/api/create-order", data=waiting(), headers=MULTIPART))
    await begun.wait()
    while True:
        async with world.client.post(service + path, data=b"", headers=MULTIPART) as response:
            await response.read()
        if response.status == 503:
            break
    await world.request("POST", service + path, 503, data=b"", headers=MULTIPART)
    over.set()
    (await first).close()


async def create_sample_order(world: World) -> None:
    path = "/api/create-sample-order"
    await invalid_admin_tokens(world, "POST", path)
    service = await world.start(**WITH_ADMIN, image_attempts=1)
    await world.request("POST", service + path, 201, headers=AS_ADMIN)
    world.sandbox.faults.always(ANY_IMAGE, Fault(Kind.STATUS, status=403), origin="upload")
    await world.request("POST", service + path, 422, headers=AS_ADMIN)
    await rejected_uploads(world, path)


async def sessions(world: World) -> None:
    service, url = await world.start(**WITH_ADMIN), "/session"
    await world.request("GET", service + url, 200)
    await world.request("DELETE", service + url, 204)
    await world.request("POST", service + url, 200, json={"key": ADMIN})
    await world.request("POST", service + url, 200, data={"key": ADMIN})
    await world.request("POST", service + url, 400, data=b"nonsense")
    await world.request("POST", service + url, 401, json={"key": "wrong"})
    await too_many_failures(world, "GET", url)
    await stalled(world, await world.start(**WITH_ADMIN, **SHORT_BODY_TIMEOUT) + url, b"{")
    strict = await world.start(**WITH_ADMIN, auth_failures_per_minute=1)
    await world.request("POST", strict + url, 401, json={"key": "wrong"})
    await world.request("POST", strict + url, 429, json={"key": "wrong"})


async def receive_webhook(world: World) -> None:
    path = "/webhooks/autoenhance"
    await world.request("POST", await world.start() + path, 503)
    url = await world.start(webhook_secret=SecretStr(SECRET)) + path
    known = {"Authentication": SECRET}
    await world.request("POST", url, 401)
    await world.request("POST", url, 400, data=b"nonsense", headers=known)
    await world.request("POST", url, 400, data=b"x" * 70_000, headers=known)
    await world.request("POST", url, 204, json={"order_id": DEMO_ORDER_ID}, headers=known)
    await stalled(
        world, await world.start(webhook_secret=SecretStr(SECRET), **SHORT_BODY_TIMEOUT) + path, b"{", **known
    )
    strict = await world.start(webhook_secret=SecretStr(SECRET), auth_failures_per_minute=1) + path
    await world.request("POST", strict, 401, headers={"Authentication": "wrong"})
    await world.request("POST", strict, 429, headers=known)


async def operations(world: World) -> None:
    service = await world.start(**WITH_ADMIN)
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/api/page"):
        await world.request("GET", service + path, 200)
    await world.request("GET", service + "/metrics", 200, headers={"Accept": "application/openmetrics-text"})
    await world.request("GET", await world.start(autoenhance_api_key=None) + "/health/ready", 503)
    await world.request("GET", await world.start(metrics_port=0) + "/metrics", 404)
    await world.request("GET", service + "/health/ready?upstream=ignore", 200)
    for query in ("upstream=x", "previw=false", "upstream=ignore&upstream=ignore"):
        await world.request("GET", f"{service}/health/ready?{query}", 400)
    async with world.client.get(f"{await world.start(image_attempts=1)}/orders/{UNKNOWN}") as response:
        await response.read()
    await world.request("GET", service + "/api/stats", 200)
    await world.request("GET", service + "/api/stats", 200, headers=AS_ADMIN)
    await too_many_failures(world, "GET", "/api/stats")
    for slug in (error.slug for error in concrete_errors()):
        await world.request("GET", f"{service}/problems/{slug}", 200)
    await world.request("GET", f"{service}/problems/none", 404)


async def sentry_issues(world: World) -> None:
    path = "/api/sentry/issues"
    await invalid_admin_tokens(world, "GET", path)
    await world.request("GET", await world.start(**WITH_ADMIN) + path, 503, headers=AS_ADMIN)
    async with running_sentry() as sentry:
        service = await world.start(**issue_settings(sentry.url))
        await world.request("GET", service + path, 200, headers=AS_ADMIN)
        for status, text in ((401, "[]"), (500, "[]"), (200, "{}")):
            sentry.response = aiohttp.web.Response(status=status, text=text)
            await world.request("GET", service + path, 502, headers=AS_ADMIN)


SCENARIOS: dict[Callable[[World], Awaitable[None]], set[str]] = {
    get_order: {"getOrder"},
    download_order: {"downloadOrder"},
    probe_order: {"probeOrder"},
    download_missing: {"downloadMissing"},
    create_link: {"createLink"},
    get_thumbnail: {"getThumbnail"},
    get_receipt: {"getReceipt"},
    watch_download: {"watchDownload"},
    create_order: {"createOrder"},
    create_sample_order: {"createSampleOrder"},
    sessions: {"getSession", "startSession", "endSession"},
    receive_webhook: {"receiveWebhook"},
    operations: {
        *("getHealth", "getLiveness", "getReadiness", "getMetrics", "getStatistics"),
        *("getPageConfig", "explainProblem", "getDescription"),
    },
    sentry_issues: {"listSentryIssues"},
}
# Only a service that shuts down responds so; tests/server/test_draining.py covers it.
SEEN_ELSEWHERE = {"draining"}


def test_every_operation_has_a_scenario() -> None:
    """Each described operation has a scenario."""
    assert set.union(*SCENARIOS.values()) == set(operations_by_id())


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
async def test_scenario_provokes_every_response(scenario: Callable[[World], Awaitable[None]], world: World) -> None:
    """Each status and problem of an operation arrives over a real socket, as described, and no other does."""
    await scenario(world)
    operations = [one for one in OPERATIONS if one.operation_id in SCENARIOS[scenario]]
    statuses = {
        (one.operation_id, int(status))
        for one in operations
        for status in operations_by_id()[one.operation_id]["responses"]
        if status != "default"
    }
    assert world.validator.seen == statuses
    problems = {error.slug for one in operations if one.method != "head" for error in one.problems}
    assert problems - world.validator.problems - SEEN_ELSEWHERE == set()


async def test_trailers_are_as_described(service: str, client: aiohttp.ClientSession) -> None:
    """A download has exactly the described trailers, each a number."""
    del client
    host, port = service.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /orders/{PARTIAL_ORDER_ID}/images HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    raw = await reader.read()
    writer.close()
    await writer.wait_closed()
    fields = dict(line.split(": ") for line in raw.rpartition(b"\r\n0\r\n")[2].decode().strip().split("\r\n"))
    trailers = operations_by_id()["downloadOrder"]["responses"]["200"]["x-trailers"]
    assert list(fields) == list(trailers) == list(TRAILERS)
    for name, text in fields.items():
        ResponseValidator(DOCUMENT).validate_value(trailers[name]["schema"], int(text))


async def test_service_serves_the_document_and_its_assets(service: str, client: aiohttp.ClientSession) -> None:
    """The service serves this document, the assets of its page, and no other files."""
    async with client.get(f"{service}/openapi.json") as response:
        served_document = await response.json()
    assert {**served_document, "info": None} == {**DOCUMENT, "info": None}
    for name in ASSETS:
        async with client.get(f"{service}/docs/{name}") as response:
            assert response.status == 200
            again = {"If-None-Match": response.headers["ETag"]}
        async with client.get(f"{service}/docs/{name}", headers=again) as response:
            assert response.status == 304
    for name in ("index.html", "..%2Findex.html", "%2e%2e%2fdocs.py", "LICENSE"):
        async with client.get(f"{service}/docs/{name}") as response:
            assert response.status == 404


@pytest.mark.parametrize(
    ("operation_id", "method", "path", "granted"),
    [
        ("probeOrder", "HEAD", f"/orders/{DEMO_ORDER_ID}/images", 200),
        ("getReceipt", "GET", f"/archives/{UNKNOWN}", 404),
        ("listSentryIssues", "GET", "/api/sentry/issues", 503),
        ("receiveWebhook", "POST", "/webhooks/autoenhance", 204),
    ],
)
async def test_each_security_scheme_grants_access(
    operation_id: str, method: str, path: str, granted: int, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Without credentials the response is a 401; each documented scheme alone grants access."""
    keys_needed = {"service_api_keys": (SecretStr("a-key-of-the-service"),), "webhook_secret": SecretStr(SECRET)}
    service = await start_service(**WITH_ADMIN, **SIGNING, **keys_needed)
    async with client.request(method, service + path) as response:
        assert response.status == 401
    async with client.post(f"{service}/orders/{DEMO_ORDER_ID}/links", headers=AS_ADMIN) as response:
        link = (await response.json())["url"].partition("link=")[2]
    async with client.post(f"{service}/session", json={"key": ADMIN}) as response:
        session = response.cookies["batch_session"].value
    client.cookie_jar.clear()
    secrets = {"bearer": ADMIN, "serviceKey": "a-key-of-the-service", "adminToken": ADMIN, "session": session}
    secrets |= {"link": link, "webhookSecret": SECRET}
    for scheme in {name for need in operations_by_id()[operation_id]["security"] for name in need}:
        written = DOCUMENT["components"]["securitySchemes"][scheme]
        location, name = written.get("in"), written.get("name")
        options: dict[str, Any]
        if written["type"] == "http":
            options = {"headers": {"Authorization": f"Bearer {secrets[scheme]}"}}
        elif location == "cookie":
            options = {"headers": {"Cookie": f"{name}={secrets[scheme]}"}}
        else:
            options = {"params" if location == "query" else "headers": {name: secrets[scheme]}}
        async with client.request(method, service + path, **options) as response:
            assert response.status == granted, scheme
