"""Fuzz every route: each response is documented, each rejection is a problem document, none is a 500."""

import asyncio
import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from service.app import create_app
from service.archive.parameters import PARAMETERS
from service.sandbox import DEMO_ORDER_ID, EMPTY_ORDER_ID, Sandbox
from service.settings import Settings
from service.web.auth.sessions import MAX_SIGN_IN_BYTES
from service.web.downloads import events
from service.web.openapi.document import OPERATIONS
from tests.archives import add_order, jpeg
from tests.conftest import StartService

KEY, ADMIN, SIGNING, WEBHOOK = "key-of-a-fuzz-client", "token-of-the-operator", "s" * 32, "secret-of-the-webhook"
SECRETS = tuple(secret.encode() for secret in (KEY, ADMIN, SIGNING, WEBHOOK))
ORDER, UNKNOWN = "5a4d0b0c-0000-4000-8000-00000000f022", "5a4d0b0c-0000-4000-8000-00000000ffff"
IMAGE, ARCHIVE = "5a4d0b0c-f022-4001-8000-000000000001", "5a4d0b0c-0000-4000-8000-00000000a0a0"
ROUTES = sorted(
    {(one.method, one.resource.canonical) for one in create_app(Settings()).router.routes() if one.resource is not None}
)
# Problems of any request, in addition to those of its operation.
ROUTER_PROBLEMS = {"bad-request", "not-found", "method-not-allowed"}
# Statuses of conditional and range requests (RFC 9110 sections 13 and 14), which need no problem document.
HTTP_CONDITIONS = {304, 412, 416}
EXAMPLES = 40


@dataclass(frozen=True)
class RawRequest:
    """A request as raw bytes."""

    method: bytes
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    def encode(self) -> bytes:
        """Return the bytes to send, with the correct length, one Host, and ``Connection: close``."""
        fields = {name.lower() for name, _ in self.headers}
        headers = [*self.headers, *([] if b"host" in fields else [(b"Host", b"localhost")]), (b"Connection", b"close")]
        if self.body:
            headers.append((b"Content-Length", b"%d" % len(self.body)))
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return self.method + b" " + self.target + b" HTTP/1.1\r\n" + lines + b"\r\n" + self.body


# Texts that are hard to handle: empty, unpaired surrogates, values at and beyond limits, markup, line ends.
ODD_TEXTS = st.sampled_from(
    ["", " ", "\x00", "\ud800", "\udcff", "\u202e", "../..", "%", "%00", "'\"<script>", "0", "-1", "NaN", "1e400",
     "9" * 400, "x" * 3000, "true", "null", "a\r\nX-Evil: 1", "\uff11", "None", "[]"]
)  # fmt: skip
TEXTS = ODD_TEXTS | st.text(max_size=8)
ODD_BYTES = st.sampled_from(
    [b"", b"\xff\xfe", b"\xed\xa0\x80", b"\t", b"," * 50, b'"', b";=", b"\xc3\xa4", b"x" * 3000]
)
FIELD_VALUES = ODD_BYTES | st.binary(max_size=8).map(lambda text: text.translate(None, b"\r\n\x00"))
IDS = st.sampled_from([ORDER, UNKNOWN, EMPTY_ORDER_ID, IMAGE, ARCHIVE, ORDER.upper()])
GOOD_VALUES: dict[str, Sequence[str]] = {
    "format": ["png"], "quality": ["1", "90"], "preview": ["false"], "dev_mode": ["true"], "max_width": ["1"],
    "scale": ["0.5"], "on_error": ["abort"], "manifest": ["always"], "layout": ["stored"], "max_credits": ["0", "9"],
    "archive_id": [ARCHIVE], "only": [IMAGE], "wait": ["0", "1"],
}  # fmt: skip
ODD_FIELDS: dict[bytes, Sequence[bytes]] = {
    b"Host": [b"", b"a:99999", b"[::1", b"a b", b"u:p@h", b"[::1]:80", b"\xff"],
    b"Cookie": [b"batch_session=\xff", b"batch_session=.e30.x.y", b'batch_session="\\355\\240\\200"'],
    b"Authorization": [b"Bearer", b"Bearer " + ADMIN.encode(), b"Basic \xff"],
    b"X-API-Key": [KEY.encode(), b"\xff"],
    b"X-Admin-Token": [ADMIN.encode(), b"\xff"],
    b"Authentication": [WEBHOOK.encode(), b"\xff"],
    b"X-Request-ID": [b"\xff", b"a" * 200],
    b"X-Forwarded-For": [b"\xff, ::1", b","],
    b"X-Forwarded-Proto": [b"https", b"\xff"],
    b"traceparent": [b"00-\xff", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-00"],
    b"Accept": [b"application/openmetrics-text; version=x", b"\xff;q=\xff"],
    b"Range": [b"bytes=9-1", b"bytes=-", b"bytes=0-99999999999999999999"],
    b"If-None-Match": [b'"', b"*"],
    b"If-Modified-Since": [b"Mon, 99 Foo 0000 99:99:99 GMT"],
    b"If-Match": [b'"x"'],
    b"Origin": [b"https://app.example.com", b"null"],
    b"Access-Control-Request-Method": [b"GET", b"\xff"],
    b"Last-Event-ID": [b"9" * 50, b"-1"],
    b"Sec-Fetch-Site": [b"cross-site"],
    b"Expect": [b"100-continue", b"tea"],
    b"Content-Type": [b"application/json", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=b",
                      b"multipart/form-data", b"multipart/form-data; boundary=" + b"b" * 71,
                      b"text/plain; charset=\xff"],
    b"Content-Encoding": [b"gzip", b"\xff"],
}  # fmt: skip
HEADERS = st.lists(
    st.one_of(
        [st.tuples(st.just(name), st.sampled_from(values) | FIELD_VALUES) for name, values in ODD_FIELDS.items()]
    ),
    max_size=4,
    unique_by=lambda field: field[0],
)
# With these, half of all requests are authenticated.
CREDENTIALS = st.sampled_from([(b"X-Admin-Token", ADMIN.encode()), (b"X-API-Key", KEY.encode()), (b"Accept", b"*/*")])

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | IDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
JSON_NAMES = st.sampled_from(
    ["key", "parameters", "expires_in_seconds", "only", "missing", "order_id", "event", *PARAMETERS]
)
JSON_BODIES = st.dictionaries(
    JSON_NAMES, st.dictionaries(JSON_NAMES, JSON_VALUES, max_size=2) | JSON_VALUES, max_size=3
).map(lambda document: json.dumps(document).encode())
NESTED_BODIES = st.sampled_from([b"[" * (MAX_SIGN_IN_BYTES - 1), b'{"key":' * 500, b"[" * 60_000, b"1" * 5000])
PART_HEADERS = st.sampled_from(
    [b'Content-Disposition: form-data; name="files"; filename="a.jpg"', b'Content-Disposition: form-data; name="name"',
     b'Content-Disposition: form-data; name="_charset_"', b"Content-Disposition: \xff",
     b"Content-Type: multipart/mixed",
     b'Content-Disposition: form-data; name="files"; filename*=utf-16\'\'%00%d8',
     b'Content-Disposition: form-data; name="files"; filename="a.jpg"\r\nContent-Length: -5',
     b'Content-Disposition: form-data; name="files"; filename="a.jpg"\r\nContent-Transfer-Encoding: base64',
     b'Content-Disposition: form-data; name="files"; filename="a.jpg"\r\nContent-Encoding: gzip',
     b"A: b\r\n" * 200, b"A: " + b"b" * 20_000, b""]
)  # fmt: skip
PARTS = st.tuples(PART_HEADERS, st.sampled_from([jpeg(2000), b"", b"--b", b"\r\n--b"]) | st.binary(max_size=20)).map(
    lambda part: b"--b\r\n" + part[0] + b"\r\n\r\n" + part[1] + b"\r\n"
)
FORMS = st.tuples(st.lists(PARTS, max_size=3), st.sampled_from([b"--b--\r\n", b"", b"--b"])).map(
    lambda form: b"".join(form[0]) + form[1]
)
BODIES = st.one_of(
    st.just(b""),
    JSON_BODIES,
    NESTED_BODIES,
    FORMS,
    st.binary(max_size=30),
    TEXTS.map(lambda text: b"key=" + _quoted(text)),
)


def _quoted(text: str) -> bytes:
    return quote(text.encode("utf-8", "surrogatepass"), safe="").encode()


def _targets(path: str) -> st.SearchStrategy[bytes]:
    """Return URLs of a route, with existing and other ids, and with known and other parameters."""
    segments: list[st.SearchStrategy[bytes]] = [
        (IDS | TEXTS).map(_quoted) if segment.startswith("{") else st.just(segment.encode())
        for segment in path.split("/")
    ]
    known = st.one_of([st.tuples(st.just(name), st.sampled_from(values)) for name, values in GOOD_VALUES.items()])
    pairs = known | st.tuples(st.sampled_from([*PARAMETERS, "link"]), TEXTS) | st.tuples(TEXTS, TEXTS)
    query = st.lists(pairs, max_size=3).map(
        lambda items: b"&".join(_quoted(name) + b"=" + _quoted(value) for name, value in items)
    )
    return st.tuples(st.tuples(*segments).map(b"/".join), query).map(
        lambda parts: parts[0] + (b"?" + parts[1] if parts[1] else b"")
    )


def requests(method: str, targets: st.SearchStrategy[bytes]) -> st.SearchStrategy[RawRequest]:
    """Return requests to these targets."""
    headers = st.tuples(CREDENTIALS, HEADERS).map(
        lambda parts: [*([] if parts[0][0] in dict(parts[1]) else [parts[0]]), *parts[1]]
    )
    return st.builds(
        RawRequest, st.just(method.encode()), targets, headers, BODIES if method == "POST" else st.just(b"")
    )


def exchange(port: int, data: bytes) -> bytes:
    """Send a request; return all bytes until the connection ends."""
    response = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(data)
        while piece := connection.recv(1 << 16):
            response += piece
    return bytes(response)


def check_response(request: RawRequest, response: bytes, documented: set[tuple[int, str]] | None) -> None:
    """Fail unless the route is documented to give this response."""
    if response.startswith(b"HTTP/1.1 100 "):
        response = response.partition(b"\r\n\r\n")[2]
    header, _, body = response.partition(b"\r\n\r\n")
    lines = header.decode("latin-1").split("\r\n")
    status = int(lines[0].split(" ")[1])
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    event(f"{status}")
    assert "x-evil" not in fields
    assert fields["x-content-type-options"] == "nosniff"
    assert not any(secret in response for secret in SECRETS)
    if status < 400 or status in HTTP_CONDITIONS:
        return
    assert fields["content-type"].startswith("application/problem+json"), response
    if request.method == b"HEAD":
        assert status < 500 or (documented and status in {one for one, _ in documented})
        return
    problem = json.loads(body)
    slug = problem["type"].removeprefix("/problems/")
    assert problem["status"] == status
    assert slug in ROUTER_PROBLEMS or documented is None or (status, slug) in documented, response
    assert status < 500 or documented, response


@pytest.fixture
async def fuzz(
    sandbox: Sandbox, start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> Callable[[st.SearchStrategy[RawRequest], set[tuple[int, str]] | None], Any]:
    """Return a function that sends many requests to a service with all secrets, and checks the responses."""
    monkeypatch.setattr(events, "APPEARANCE_SECONDS", 0.01)
    order = add_order(sandbox, [300, 200], "Fuzzed")
    order.images[0].image_id, sandbox.orders[ORDER] = IMAGE, order
    service = await start_service(
        service_api_keys=(SecretStr(KEY),), admin_token=SecretStr(ADMIN), signing_keys=(SecretStr(SIGNING),),
        webhook_secret=SecretStr(WEBHOOK), allowed_origins=("https://app.example.com",), trusted_proxy_hops=1,
        auth_failures_per_minute=1_000_000, wait_max_seconds=0, client_stall_seconds=5, image_attempts=1,
    )  # fmt: skip
    port = urlsplit(service).port
    assert port is not None

    async def run(strategy: st.SearchStrategy[RawRequest], documented: set[tuple[int, str]] | None) -> None:
        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
        @given(strategy)
        def attempt(request: RawRequest) -> None:
            check_response(request, exchange(port, request.encode()), documented)

        # Hypothesis blocks for each response; the service runs in this event loop.
        await asyncio.to_thread(attempt)

    return run


def documented_problems(method: str, path: str) -> set[tuple[int, str]] | None:
    """Return the problems documented for a route; ``None`` if the route is not documented."""
    found = [one for one in OPERATIONS if (one.method, one.path) == (method.lower(), path)]
    if not found and method == "HEAD":
        return documented_problems("GET", path)
    return {(error.status, error.slug) for one in found for error in one.problems} if found else None


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda text: text)
async def test_route_responds_as_documented(method: str, path: str, fuzz: Any) -> None:
    """No header, parameter, id or body causes an undocumented response."""
    await fuzz(requests(method, _targets(path)), documented_problems(method, path))


async def test_unknown_path_or_method_is_a_problem(fuzz: Any) -> None:
    """Unknown paths and methods get a problem document."""
    targets = TEXTS.map(lambda text: b"/" + _quoted(text)) | st.sampled_from(
        [
            b"*",
            b"//evil.example/",
            b"http://evil.example/session",
            b"http://[::1/",
            b"/orders//images",
            b"/static/..%2f",
        ]
    )
    methods = st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "GEt"])
    await fuzz(methods.flatmap(lambda method: requests(method, targets)), None)


def test_fuzzed_order_differs_from_the_fixed_orders() -> None:
    """The tests do not modify a fixed order of the sandbox."""
    assert ORDER not in {DEMO_ORDER_ID, EMPTY_ORDER_ID}
