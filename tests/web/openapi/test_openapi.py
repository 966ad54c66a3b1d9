"""``/openapi.json`` is true: routes, parameters and problems are the code's own, and every answer in it happens."""

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
from service.archive.plan import PARAMETERS, parse_options
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
from service.web.openapi.problems import EXAMPLES
from service.web.site.docs import ASSETS
from tests.archives import add_order, entries, jpeg
from tests.conftest import StartService
from tests.fakes.sentry import running_sentry
from tests.monitoring.test_sentry import ADMIN, AS_ADMIN, issue_settings
from tests.web.check_openapi import Judge, ask

DOCUMENT = openapi_document("1.2.3")
# For people, and parts of pages: they are no interface for programs.
NOT_DESCRIBED = {"/", "/docs", "/docs/{asset}", "/static/{name}"}
# They cannot be the answer of an operation that exists, or of one whatever it is.
OF_NO_OPERATION = {"bad-request", "method-not-allowed", "internal-error"}
UNKNOWN = "5a4d0b0c-0000-4000-8000-00000000ffff"
SECRET = "secret-of-the-webhook"
OPERATOR = {"admin_token": SecretStr(ADMIN)}
HASTY: dict[str, Any] = {"request_body_timeout_seconds": 0.1}
SIGNING = {"signing_keys": (SecretStr("s" * 32),)}
PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + jpeg(1000, 1)
MULTIPART = {"Content-Type": "multipart/form-data; boundary=b", **AS_ADMIN}


def described() -> dict[str, dict[str, Any]]:
    """Return every operation by its id."""
    return {one["operationId"]: one for path in DOCUMENT["paths"].values() for one in path.values()}


def test_it_is_openapi() -> None:
    """The document keeps to OpenAPI 3.1, and each operation has its own id, a summary and a description."""
    validate(DOCUMENT)
    assert len(described()) == len(OPERATIONS)
    assert all(one["summary"] and one["description"] for one in described().values())
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    assert {tag for one in described().values() for tag in one["tags"]} == tags


def test_routes() -> None:
    """Every route and method of the app is described or deliberately left out; HEAD goes without saying."""
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
def test_parameters_are_those_of_the_parser(operation_id: str, names: set[str]) -> None:
    """Each download has the parameters that the parser takes, no other."""
    parameters = described()[operation_id]["parameters"]
    assert {one["name"] for one in parameters if one["in"] == "query"} == names


@pytest.mark.parametrize("parameter", described()["getOrder"]["parameters"][1:], ids=lambda one: one["name"])
def test_bounds_are_those_of_the_parser(parameter: dict[str, Any]) -> None:
    """What a schema allows the parser takes, what it forbids it refuses; defaults are what is assumed."""
    schema, name = parameter["schema"], parameter["name"]
    good, bad = _samples(schema)
    for text in good:
        parse_options([(name, text)])
    for text in bad:
        with pytest.raises(InvalidParameter):
            parse_options([(name, text)])
    if "default" in schema:
        written = str(schema["default"])
        given = parse_options([(name, written.lower() if schema["type"] == "boolean" else written)])
        assert given == parse_options([])


def _samples(schema: dict[str, Any]) -> tuple[list[str], list[str]]:
    if "enum" in schema:
        return schema["enum"], ["other", "", schema["enum"][0].upper()]
    if schema["type"] == "integer":
        low, high = schema["minimum"], schema["maximum"]
        return [str(low), str(high)], [str(low - 1), str(high + 1), "1.5", "x", ""]
    if schema["type"] == "number":
        return ["0.001", "1"], ["0", "1.001", "-1", "x"]
    if schema["type"] == "boolean":
        return ["true", "false"], ["1", "yes", ""]
    if schema.get("format") == "uuid":
        return [DEMO_ORDER_ID], ["x", ""]
    assert schema["type"] == "array"
    return ["x"], [""]


def test_problems_are_those_of_the_tree() -> None:
    """Every type has an example, which is what its class says; and each is the answer of some operation."""
    errors = {error.slug: error for error in concrete_errors()}
    examples = DOCUMENT["components"]["examples"]
    assert set(EXAMPLES) == set(examples) == set(errors)
    judge = Judge(DOCUMENT)
    for slug, example in examples.items():
        judge.check({"$ref": "#/components/schemas/Problem"}, example["value"])
        assert (example["value"]["title"], example["value"]["status"]) == (errors[slug].title, errors[slug].status)
    of_operations = {error for operation in OPERATIONS for error in operation.problems}
    assert {error.slug for error in concrete_errors(ServiceError) if error not in of_operations} == OF_NO_OPERATION


def test_examples_fit_their_schemas() -> None:
    """What a body may look like is a body that may be sent."""
    judge = Judge(DOCUMENT)
    for operation in described().values():
        for media in operation.get("requestBody", {}).get("content", {}).values():
            values = [one["value"] for one in media.get("examples", {}).values()]
            for value in [*values, *([media["example"]] if "example" in media else [])]:
                judge.check(media["schema"], value)


def test_everything_is_used() -> None:
    """No header, schema or scheme is left over, and none is missing."""
    text = json.dumps(DOCUMENT)
    referred = set(re.findall(r'"\$ref": "#/components/(\w+)/([\w-]+)"', text))
    schemes = {name for one in described().values() for need in one["security"] for name in need}
    there = {(kind, name) for kind, parts in DOCUMENT["components"].items() for name in parts}
    unreferred = {(kind, name) for kind, name in there - referred if kind != "securitySchemes"}
    assert unreferred == {("examples", slug) for slug in OF_NO_OPERATION - {"bad-request", "internal-error"}}
    assert referred <= there
    assert schemes == set(DOCUMENT["components"]["securitySchemes"])


# Every answer happens.


@dataclass
class World:
    """What a scenario needs: the upstream, services, a caller, and the judge of all answers."""

    sandbox: Sandbox
    start: StartService
    client: aiohttp.ClientSession
    judge: Judge
    monkeypatch: pytest.MonkeyPatch

    async def ask(self, method: str, url: str, status: int, **options: Any) -> bytes:
        """Send a request and have its answer judged."""
        return (await ask(self.judge, self.client, method, url, status, **options))[1]


@pytest.fixture
async def world(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> World:
    """The sandbox and a judge that has seen nothing yet."""
    return World(sandbox, start_service, client, Judge(DOCUMENT), monkeypatch)


async def keys(world: World, method: str, path: str, **options: Any) -> None:
    """No key, and too many wrong ones."""
    locked = await world.start(service_api_keys=(SecretStr("a-key-of-the-service"),), auth_failures_per_minute=1)
    wrong = {**options.pop("headers", {}), "X-API-Key": "wrong"}
    for status, headers in ((401, {}), (401, wrong), (429, wrong)):
        await world.ask(method, locked + path, status, headers=headers, **options)


async def guesses(world: World, method: str, path: str) -> None:
    """Too many wrong keys, where none is needed."""
    service = await world.start(**OPERATOR, auth_failures_per_minute=1)
    wrong = {"X-API-Key": "wrong"}
    async with world.client.request(method, service + path, headers=wrong) as response:
        await response.read()
    await world.ask(method, service + path, 429, headers=wrong)


async def operator(world: World, method: str, path: str) -> None:
    """Not the operator; no operator at all; too many wrong tokens."""
    service = await world.start(**OPERATOR, auth_failures_per_minute=1)
    await world.ask(method, service + path, 401)
    await world.ask(method, await world.start() + path, 403)
    await guesses(world, method, path)


async def look_ups(world: World, method: str, service: str, path: str, **options: Any) -> None:
    """Each way in which the look-up of an order goes wrong."""
    await world.ask(method, await world.start(autoenhance_api_key=None) + path, 503, **options)
    await world.ask(method, service + path.replace(DEMO_ORDER_ID, UNKNOWN), 404, **options)
    for fault, status in (
        (Fault(Kind.STATUS, status=401), 502),
        (Fault(Kind.NOT_JSON), 502),
        (Fault(Kind.RESET), 502),
        (Fault(Kind.SILENCE), 504),
    ):
        world.sandbox.faults.order(DEMO_ORDER_ID, [fault])
        await world.ask(method, service + path, status, **options)


async def refused_downloads(world: World, method: str, **options: Any) -> None:
    """Everything that is refused before the first byte, by whatever method."""
    path = f"/orders/{DEMO_ORDER_ID}/images"
    service = await world.start(image_attempts=1, image_timeout_seconds=0.3, max_images_per_order=20)
    await keys(world, method, path, **options)
    await look_ups(world, method, service, path, **options)
    for query in ("quality=0", "colour=1", "preview=true&preview=true"):
        await world.ask(method, f"{service}{path}?{query}", 400, **options)
    await world.ask(method, f"{service}/orders/x/images", 400, **options)
    await world.ask(method, f"{service}{path}?preview=false&max_credits=0", 402, **options)
    await world.ask(method, f"{await world.start(allow_full_quality=False)}{path}?preview=false", 403, **options)
    await world.ask(method, service + path, 412, headers={"If-Match": '"x"'}, **options)
    await links_that_open_nothing(world, method, path, **options)
    await world.ask(method, f"{service}/orders/{EMPTY_ORDER_ID}/images", 404, **options)
    await world.ask(method, f"{service}/orders/{MERGING_ORDER_ID}/images", 409, **options)
    many = add_order(world.sandbox, [10] * 21)
    lost = world.sandbox.add_order([SandboxImage("a.jpg", status="error")])
    if method != "POST":  # whose body names images
        await world.ask(method, f"{service}{path}?only=x", 400, **options)
        await world.ask(method, f"{service}/orders/{many.order_id}/images", 413, **options)
        await world.ask(method, f"{service}/orders/{lost.order_id}/images", 422, **options)
    else:
        for order, status in ((many, 413), (lost, 422)):
            body = {"only": [image.image_id for image in order.images]}
            await world.ask(method, f"{service}/orders/{order.order_id}/images", status, json=body)
    await at_capacity(world, method, path, **options)


async def links_that_open_nothing(world: World, method: str, path: str, **options: Any) -> None:
    """A link that was changed, and one whose time is over."""
    service = await world.start(**SIGNING)
    await world.ask(method, f"{service}{path}?link=x", 403, **options)
    async with world.client.post(f"{service}/orders/{DEMO_ORDER_ID}/links", json={"expires_in_seconds": 1}) as response:
        url = (await response.json())["url"]
    with world.monkeypatch.context() as later:
        later.setattr("time.time", lambda: 2e9)
        other = await world.start(**SIGNING)
        await world.ask(method, f"{other}{path}?link={url.partition('link=')[2]}", 403, **options)


async def at_capacity(world: World, method: str, path: str, **options: Any) -> None:
    """All places are taken."""
    service = await world.start(max_archives=1)
    order = add_order(world.sandbox, [3000])
    gate = world.sandbox.faults.pause(order.images[0].image_id, after_bytes=1000)
    async with world.client.get(f"{service}/orders/{order.order_id}/images") as first:
        await world.ask(method, service + path, 503, **options)
        gate.release()
        await first.read()


async def no_first_byte(world: World, method: str, **options: Any) -> None:
    """No image comes in time."""
    service = await world.start(first_byte_seconds=0.3)
    order = add_order(world.sandbox, [500])
    gate = world.sandbox.faults.pause(order.images[0].image_id)
    body = {"json": {"only": [order.images[0].image_id]}} if method == "POST" else {}
    await world.ask(method, f"{service}/orders/{order.order_id}/images", 504, **{**options, **body})
    gate.release()


async def download_order(world: World) -> None:
    service = await world.start()
    body = await world.ask("GET", f"{service}/orders/{PARTIAL_ORDER_ID}/images?archive_id={UNKNOWN}", 200)
    assert "_manifest.json" in entries(body)
    await world.ask("GET", f"{service}/orders/{PARTIAL_ORDER_ID}/images?archive_id={UNKNOWN}", 409)
    await no_first_byte(world, "GET")
    await refused_downloads(world, "GET")


async def probe_order(world: World) -> None:
    service = await world.start()
    await world.ask("HEAD", f"{service}/orders/{PARTIAL_ORDER_ID}/images", 200)
    await refused_downloads(world, "HEAD")


async def download_missing(world: World) -> None:
    service = await world.start()
    image = world.sandbox.orders[DEMO_ORDER_ID].images[0].image_id
    url = f"{service}/orders/{DEMO_ORDER_ID}/images"
    options: dict[str, Any] = {"json": {"only": [image]}}
    await world.ask("POST", url, 200, data={"only": image})
    await world.ask("POST", f"{url}?archive_id={UNKNOWN}", 200, **options)
    await world.ask("POST", f"{url}?archive_id={UNKNOWN}", 409, **options)
    await world.ask("POST", url, 204, json={"order_id": DEMO_ORDER_ID, "missing": []})
    await world.ask("POST", url, 400, data=b"nonsense")
    await world.ask("POST", url, 400, json={"only": ["x"]})
    await stalled(world, f"{await world.start(**HASTY)}/orders/{DEMO_ORDER_ID}/images", b"{")
    await no_first_byte(world, "POST")
    await refused_downloads(world, "POST", **options)


async def stalled(world: World, url: str, start: bytes, **headers: str) -> None:
    """A body that does not end."""
    over = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield start
        await over.wait()

    async with world.client.post(url, data=body(), headers=headers) as response:
        answer = await response.read()
        world.judge.judge("POST", response.url, response.status, response.headers, answer)
        over.set()
    assert response.status == 408


async def get_order(world: World) -> None:
    service, path = await world.start(image_attempts=1, image_timeout_seconds=0.3), f"/orders/{DEMO_ORDER_ID}"
    for order_id in (DEMO_ORDER_ID, PARTIAL_ORDER_ID, EMPTY_ORDER_ID, MERGING_ORDER_ID):
        await world.ask("GET", f"{service}/orders/{order_id}", 200)
    for wrong in ("/orders/x", f"{path}?quality=0", f"{path}?colour=1", f"{path}?wait=1&wait=2", f"{path}?only=x"):
        await world.ask("GET", service + wrong, 400)
    await keys(world, "GET", path)
    await look_ups(world, "GET", service, path)


async def create_link(world: World) -> None:
    service, path = await world.start(**SIGNING), f"/orders/{DEMO_ORDER_ID}/links"
    await world.ask("POST", service + path, 201, json={"parameters": {"quality": 80}})
    for body in (b"nonsense", b'{"parameters": {"quality": 0}}', b'{"parameters": {"colour": 1}}', b"x" * 70_000):
        await world.ask("POST", service + path, 400, data=body)
    await world.ask("POST", service + path, 400, data=b'{"parameters": {"quality": [1, 2]}}')
    await world.ask("POST", f"{service}/orders/x/links", 400)
    cheap = await world.start(**SIGNING, allow_full_quality=False)
    await world.ask("POST", cheap + path, 403, json={"parameters": {"preview": False}})
    await world.ask("POST", await world.start() + path, 503)
    await stalled(world, await world.start(**SIGNING, **HASTY) + path, b"{")
    await keys(world, "POST", path)


async def get_thumbnail(world: World) -> None:
    service = await world.start(image_attempts=1)
    image = world.sandbox.orders[DEMO_ORDER_ID].images[0].image_id
    path = f"/images/{image}/preview"
    await world.ask("GET", service + path, 200)
    await world.ask("GET", f"{service}/images/unknown/preview", 502)
    await world.ask("GET", await world.start(autoenhance_api_key=None) + path, 503)
    await keys(world, "GET", path)
    with world.monkeypatch.context() as full:
        full.setattr("service.app.THUMBNAILS_WAITING", 0)
        await world.ask("GET", await world.start() + path, 503)


async def get_receipt(world: World) -> None:
    service = await world.start()
    async with world.client.get(f"{service}/orders/{PARTIAL_ORDER_ID}/images?manifest=always") as response:
        archive_id = response.headers["X-Archive-Id"]
        await response.read()
    await world.ask("GET", f"{service}/archives/{archive_id}", 200)
    await refused_receipts(world, service, "")


async def refused_receipts(world: World, service: str, ending: str) -> None:
    """Receipts that are not there, or not for everybody."""
    await world.ask("GET", f"{service}/archives/x{ending}", 400)
    await world.ask("GET", f"{service}/archives/{uuid.uuid4()}{ending}", 404)
    await keys(world, "GET", f"/archives/{uuid.uuid4()}{ending}")
    await links_that_open_nothing(world, "GET", f"/archives/{uuid.uuid4()}{ending}")


async def watch_download(world: World) -> None:
    world.monkeypatch.setattr("service.web.downloads.receipts.APPEARANCE_SECONDS", 0.1)
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
        world.judge.judge("GET", watching.url, watching.status, watching.headers, text.encode())
    schemas = described()["watchDownload"]["responses"]["200"]["x-events"]
    found = re.findall(r"^event: (\w+)\ndata: (.+)$", text, re.MULTILINE)
    for kind, data in found:
        world.judge.check(schemas[kind], json.loads(data))
    assert {"snapshot", "image", "end"} <= {kind for kind, _ in found}
    last = re.findall(r"^id: (\d+)$", text, re.MULTILINE)[-1]
    await world.ask("GET", service + path, 204, headers={"Last-Event-ID": last})
    await refused_receipts(world, service, "/events")
    world.monkeypatch.setattr("service.app.MAX_EVENT_STREAMS", 0)
    await world.ask("GET", await world.start() + path, 503)


async def create_order(world: World) -> None:
    path = "/api/create-order"
    await operator(world, "POST", path)
    service = await world.start(**OPERATOR, client_stall_seconds=0.2)
    url, end = service + path, b"\r\n--b--\r\n"
    await world.ask("POST", url, 201, data=PART + end, headers=MULTIPART)
    field = b'\r\n--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nlate'
    await world.ask("POST", url, 400, data=PART + field + end, headers=MULTIPART)
    await world.ask("POST", url, 400, data=b"nonsense", headers=MULTIPART)
    await world.ask("POST", url, 415, json={}, headers=AS_ADMIN)
    await world.ask("POST", url, 422, data=PART[:73] + b"text" + end, headers=MULTIPART)
    await stalled(world, url, PART, **MULTIPART)
    await uploads_that_cannot_begin(world, path)


async def uploads_that_cannot_begin(world: World, path: str) -> None:
    """No key for the API; no place."""
    keyless = await world.start(**OPERATOR, autoenhance_api_key=None)
    await world.ask("POST", keyless + path, 503, headers=AS_ADMIN)
    service, over, begun = await world.start(**OPERATOR, max_concurrent_uploads=1), asyncio.Event(), asyncio.Event()

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
    await world.ask("POST", service + path, 503, data=b"", headers=MULTIPART)
    over.set()
    (await first).close()


async def create_sample_order(world: World) -> None:
    path = "/api/create-sample-order"
    await operator(world, "POST", path)
    service = await world.start(**OPERATOR, image_attempts=1)
    await world.ask("POST", service + path, 201, headers=AS_ADMIN)
    world.sandbox.faults.always(ANY_IMAGE, Fault(Kind.STATUS, status=403), origin="upload")
    await world.ask("POST", service + path, 422, headers=AS_ADMIN)
    await uploads_that_cannot_begin(world, path)


async def sessions(world: World) -> None:
    service, url = await world.start(**OPERATOR), "/session"
    await world.ask("GET", service + url, 200)
    await world.ask("DELETE", service + url, 204)
    await world.ask("POST", service + url, 200, json={"key": ADMIN})
    await world.ask("POST", service + url, 200, data={"key": ADMIN})
    await world.ask("POST", service + url, 400, data=b"nonsense")
    await world.ask("POST", service + url, 401, json={"key": "wrong"})
    await guesses(world, "GET", url)
    await stalled(world, await world.start(**OPERATOR, **HASTY) + url, b"{")
    strict = await world.start(**OPERATOR, auth_failures_per_minute=1)
    await world.ask("POST", strict + url, 401, json={"key": "wrong"})
    await world.ask("POST", strict + url, 429, json={"key": "wrong"})


async def receive_webhook(world: World) -> None:
    path = "/webhooks/autoenhance"
    await world.ask("POST", await world.start() + path, 403)
    url = await world.start(webhook_secret=SecretStr(SECRET)) + path
    known = {"Authentication": SECRET}
    await world.ask("POST", url, 401)
    await world.ask("POST", url, 400, data=b"nonsense", headers=known)
    await world.ask("POST", url, 400, data=b"x" * 70_000, headers=known)
    await world.ask("POST", url, 204, json={"order_id": DEMO_ORDER_ID}, headers=known)
    await stalled(world, await world.start(webhook_secret=SecretStr(SECRET), **HASTY) + path, b"{", **known)
    strict = await world.start(webhook_secret=SecretStr(SECRET), auth_failures_per_minute=1) + path
    await world.ask("POST", strict, 401, headers={"Authentication": "wrong"})
    await world.ask("POST", strict, 429, headers=known)


async def for_operators(world: World) -> None:
    service = await world.start(**OPERATOR)
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/api/page"):
        await world.ask("GET", service + path, 200)
    await world.ask("GET", service + "/metrics", 200, headers={"Accept": "application/openmetrics-text"})
    await world.ask("GET", await world.start(autoenhance_api_key=None) + "/health/ready", 503)
    await world.ask("GET", await world.start(metrics_port=0) + "/metrics", 404)
    await world.ask("GET", service + "/health/ready?upstream=ignore", 200)
    for query in ("upstream=x", "previw=false", "upstream=ignore&upstream=ignore"):
        await world.ask("GET", f"{service}/health/ready?{query}", 400)
    async with world.client.get(f"{await world.start(image_attempts=1)}/orders/{UNKNOWN}") as response:
        await response.read()
    await world.ask("GET", service + "/api/stats", 200)
    await world.ask("GET", service + "/api/stats", 200, headers=AS_ADMIN)
    await guesses(world, "GET", "/api/stats")
    for slug in EXAMPLES:
        await world.ask("GET", f"{service}/problems/{slug}", 200)
    await world.ask("GET", f"{service}/problems/none", 404)


async def sentry_issues(world: World) -> None:
    path = "/api/sentry/issues"
    await operator(world, "GET", path)
    await world.ask("GET", await world.start(**OPERATOR) + path, 503, headers=AS_ADMIN)
    async with running_sentry() as sentry:
        service = await world.start(**issue_settings(sentry.url))
        await world.ask("GET", service + path, 200, headers=AS_ADMIN)
        for status, text in ((401, "[]"), (500, "[]"), (200, "{}")):
            sentry.response = aiohttp.web.Response(status=status, text=text)
            await world.ask("GET", service + path, 502, headers=AS_ADMIN)


SCENARIOS: dict[Callable[[World], Awaitable[None]], set[str]] = {
    get_order: {"getOrder"},
    download_order: {"downloadOrder"},
    probe_order: {"probeOrder"},
    download_missing: {"downloadMissing"},
    create_link: {"createLink"},
    get_thumbnail: {"getPreview"},
    get_receipt: {"getReceipt"},
    watch_download: {"watchDownload"},
    create_order: {"createOrder"},
    create_sample_order: {"createSampleOrder"},
    sessions: {"getSession", "startSession", "endSession"},
    receive_webhook: {"takeWebhook"},
    for_operators: {
        *("getHealth", "getLiveness", "getReadiness", "getMetrics", "getStatistics"),
        *("getPageFacts", "explainProblem", "getDescription"),
    },
    sentry_issues: {"listSentryIssues"},
}
# Only a service that is about to stop answers so; tests/server/test_draining.py makes it happen.
SEEN_ELSEWHERE = {"draining"}


def test_every_operation_has_a_scenario() -> None:
    """Nothing that is described goes untried."""
    assert set.union(*SCENARIOS.values()) == set(described())


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
async def test_every_answer_happens(scenario: Callable[[World], Awaitable[None]], world: World) -> None:
    """Each status and problem of an operation comes over a real socket, as described, and no other does."""
    await scenario(world)
    operations = [one for one in OPERATIONS if one.operation_id in SCENARIOS[scenario]]
    statuses = {
        (one.operation_id, int(status))
        for one in operations
        for status in described()[one.operation_id]["responses"]
        if status != "default"
    }
    assert world.judge.seen == statuses
    problems = {error.slug for one in operations if one.method != "head" for error in one.problems}
    assert problems - world.judge.problems - SEEN_ELSEWHERE == set()


async def test_trailers(service: str, client: aiohttp.ClientSession) -> None:
    """The trailers of a download are those that are described, and numbers."""
    del client
    host, port = service.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /orders/{PARTIAL_ORDER_ID}/images HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    fields = dict(line.split(": ") for line in answer.rpartition(b"\r\n0\r\n")[2].decode().strip().split("\r\n"))
    trailers = described()["downloadOrder"]["responses"]["200"]["x-trailers"]
    assert list(fields) == list(trailers) == list(TRAILERS)
    for name, text in fields.items():
        Judge(DOCUMENT).check(trailers[name]["schema"], int(text))


async def test_what_is_served(service: str, client: aiohttp.ClientSession) -> None:
    """The service hands out this document, and the parts of its page under names that lead nowhere else."""
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
    ("operation_id", "method", "path", "let_in"),
    [
        ("probeOrder", "HEAD", f"/orders/{DEMO_ORDER_ID}/images", 200),
        ("getReceipt", "GET", f"/archives/{UNKNOWN}", 404),
        ("listSentryIssues", "GET", "/api/sentry/issues", 503),
        ("takeWebhook", "POST", "/webhooks/autoenhance", 204),
    ],
)
async def test_each_way_to_be_let_in_works(
    operation_id: str, method: str, path: str, let_in: int, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Without any of the documented secrets the answer is a 401; with each alone, in its place, it is not."""
    keys_needed = {"service_api_keys": (SecretStr("a-key-of-the-service"),), "webhook_secret": SecretStr(SECRET)}
    service = await start_service(**OPERATOR, **SIGNING, **keys_needed)
    async with client.request(method, service + path) as response:
        assert response.status == 401
    async with client.post(f"{service}/orders/{DEMO_ORDER_ID}/links", headers=AS_ADMIN) as response:
        link = (await response.json())["url"].partition("link=")[2]
    async with client.post(f"{service}/session", json={"key": ADMIN}) as response:
        session = response.cookies["batch_session"].value
    client.cookie_jar.clear()
    secrets = {"bearer": ADMIN, "serviceKey": "a-key-of-the-service", "operator": ADMIN, "session": session}
    secrets |= {"link": link, "webhookSecret": SECRET}
    for scheme in {name for need in described()[operation_id]["security"] for name in need}:
        written = DOCUMENT["components"]["securitySchemes"][scheme]
        place, name = written.get("in"), written.get("name")
        options: dict[str, Any]
        if written["type"] == "http":
            options = {"headers": {"Authorization": f"Bearer {secrets[scheme]}"}}
        elif place == "cookie":
            options = {"headers": {"Cookie": f"{name}={secrets[scheme]}"}}
        else:
            options = {"params" if place == "query" else "headers": {name: secrets[scheme]}}
        async with client.request(method, service + path, **options) as response:
            assert response.status == let_in, scheme
