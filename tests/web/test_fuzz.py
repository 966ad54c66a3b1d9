"""Whatever comes to whatever route, the answer is a documented one: no 500, a problem document for each refusal."""

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

KEY, ADMIN, SIGNING, NOTICE = "key-of-a-caller-to-fuzz", "token-of-the-operator", "s" * 32, "secret-of-the-webhook"
SECRETS = tuple(secret.encode() for secret in (KEY, ADMIN, SIGNING, NOTICE))
ORDER, UNKNOWN = "5a4d0b0c-0000-4000-8000-00000000f022", "5a4d0b0c-0000-4000-8000-00000000ffff"
IMAGE, ARCHIVE = "5a4d0b0c-f022-4001-8000-000000000001", "5a4d0b0c-0000-4000-8000-00000000a0a0"
ROUTES = sorted(
    {(one.method, one.resource.canonical) for one in create_app(Settings()).router.routes() if one.resource is not None}
)
# Any request may be answered so; what is listed with an operation comes on top.
ANYWHERE = {"bad-request", "not-found", "method-not-allowed"}
# What HTTP itself says of a condition or a range; these are not about what was asked for.
OF_HTTP = {304, 412, 416}
EXAMPLES = 40


@dataclass(frozen=True)
class Sent:
    """One request, byte by byte."""

    method: bytes
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    def wire(self) -> bytes:
        """Return it as it is sent: the length is right, the host is given once, and the answer is the last."""
        fields = {name.lower() for name, _ in self.headers}
        headers = [*self.headers, *([] if b"host" in fields else [(b"Host", b"localhost")]), (b"Connection", b"close")]
        if self.body:
            headers.append((b"Content-Length", b"%d" % len(self.body)))
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return self.method + b" " + self.target + b" HTTP/1.1\r\n" + lines + b"\r\n" + self.body


# What has broken services before: no text, halves of characters, limits and what is beyond, markup, line ends.
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
    b"Authentication": [NOTICE.encode(), b"\xff"],
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
# With these, half of all requests get past the door.
LET_IN = st.sampled_from([(b"X-Admin-Token", ADMIN.encode()), (b"X-API-Key", KEY.encode()), (b"Accept", b"*/*")])

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | IDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["key", "parameters", "expires_in_seconds", "only", "missing", "order_id", "event", *PARAMETERS]
)
DOCUMENTS = st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=2) | VALUES, max_size=3).map(
    lambda document: json.dumps(document).encode()
)
DEEP = st.sampled_from([b"[" * (MAX_SIGN_IN_BYTES - 1), b'{"key":' * 500, b"[" * 60_000, b"1" * 5000])
PART_HEADS = st.sampled_from(
    [b'Content-Disposition: form-data; name="files"; filename="a.jpg"', b'Content-Disposition: form-data; name="name"',
     b'Content-Disposition: form-data; name="_charset_"', b"Content-Disposition: \xff",
     b"Content-Type: multipart/mixed",
     b'Content-Disposition: form-data; name="files"; filename*=utf-16\'\'%00%d8',
     b'Content-Disposition: form-data; name="files"; filename="a.jpg"\r\nContent-Length: -5',
     b'Content-Disposition: form-data; name="files"; filename="a.jpg"\r\nContent-Transfer-Encoding: base64',
     b'Content-Disposition: form-data; name="files"; filename="a.jpg"\r\nContent-Encoding: gzip',
     b"A: b\r\n" * 200, b"A: " + b"b" * 20_000, b""]
)  # fmt: skip
PARTS = st.tuples(PART_HEADS, st.sampled_from([jpeg(2000), b"", b"--b", b"\r\n--b"]) | st.binary(max_size=20)).map(
    lambda part: b"--b\r\n" + part[0] + b"\r\n\r\n" + part[1] + b"\r\n"
)
FORMS = st.tuples(st.lists(PARTS, max_size=3), st.sampled_from([b"--b--\r\n", b"", b"--b"])).map(
    lambda form: b"".join(form[0]) + form[1]
)
BODIES = st.one_of(
    st.just(b""), DOCUMENTS, DEEP, FORMS, st.binary(max_size=30), TEXTS.map(lambda text: b"key=" + _quoted(text))
)


def _quoted(text: str) -> bytes:
    return quote(text.encode("utf-8", "surrogatepass"), safe="").encode()


def _targets(path: str) -> st.SearchStrategy[bytes]:
    """Return addresses of a route: ids that are there and others, parameters that are known and others."""
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


def requests(method: str, targets: st.SearchStrategy[bytes]) -> st.SearchStrategy[Sent]:
    """Return requests to some addresses."""
    headers = st.tuples(LET_IN, HEADERS).map(
        lambda parts: [*([] if parts[0][0] in dict(parts[1]) else [parts[0]]), *parts[1]]
    )
    return st.builds(Sent, st.just(method.encode()), targets, headers, BODIES if method == "POST" else st.just(b""))


def exchange(port: int, wire: bytes) -> bytes:
    """Send a request and return everything that comes until the connection ends."""
    answer = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(wire)
        while piece := connection.recv(1 << 16):
            answer += piece
    return bytes(answer)


def judge(sent: Sent, answer: bytes, documented: set[tuple[int, str]] | None) -> None:
    """Fail unless an answer is one that this route may give."""
    if answer.startswith(b"HTTP/1.1 100 "):
        answer = answer.partition(b"\r\n\r\n")[2]
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split(" ")[1])
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    event(f"{status}")
    assert "x-evil" not in fields
    assert fields["x-content-type-options"] == "nosniff"
    assert not any(secret in answer for secret in SECRETS)
    if status < 400 or status in OF_HTTP:
        return
    assert fields["content-type"].startswith("application/problem+json"), answer
    if sent.method == b"HEAD":
        assert status < 500 or (documented and status in {one for one, _ in documented})
        return
    problem = json.loads(body)
    slug = problem["type"].removeprefix("/problems/")
    assert problem["status"] == status
    assert slug in ANYWHERE or documented is None or (status, slug) in documented, answer
    assert status < 500 or documented, answer


@pytest.fixture
async def fuzzed(
    sandbox: Sandbox, start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> Callable[[st.SearchStrategy[Sent], set[tuple[int, str]] | None], Any]:
    """Return what sends many requests to a service with keys, an operator and links, and judges its answers."""
    monkeypatch.setattr(events, "APPEARANCE_SECONDS", 0.01)
    order = add_order(sandbox, [300, 200], "Fuzzed")
    order.images[0].image_id, sandbox.orders[ORDER] = IMAGE, order
    service = await start_service(
        service_api_keys=(SecretStr(KEY),), admin_token=SecretStr(ADMIN), signing_keys=(SecretStr(SIGNING),),
        webhook_secret=SecretStr(NOTICE), allowed_origins=("https://app.example.com",), trusted_proxy_hops=1,
        auth_failures_per_minute=1_000_000, wait_max_seconds=0, client_stall_seconds=5, image_attempts=1,
    )  # fmt: skip
    port = urlsplit(service).port
    assert port is not None

    async def fuzz(strategy: st.SearchStrategy[Sent], documented: set[tuple[int, str]] | None) -> None:
        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
        @given(strategy)
        def attempt(sent: Sent) -> None:
            judge(sent, exchange(port, sent.wire()), documented)

        # Hypothesis waits for each answer; the service runs in this loop.
        await asyncio.to_thread(attempt)

    return fuzz


def documented_problems(method: str, path: str) -> set[tuple[int, str]] | None:
    """Return the problems that the description lists for a route; ``None`` if it does not describe it."""
    found = [one for one in OPERATIONS if (one.method, one.path) == (method.lower(), path)]
    if not found and method == "HEAD":
        return documented_problems("GET", path)
    return {(error.status, error.slug) for one in found for error in one.problems} if found else None


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda text: text)
async def test_every_route_answers_as_documented(method: str, path: str, fuzzed: Any) -> None:
    """No header, parameter, id or body, however odd, brings an answer that is not in the description."""
    await fuzzed(requests(method, _targets(path)), documented_problems(method, path))


async def test_no_path_or_method_is_a_fault(fuzzed: Any) -> None:
    """Paths and methods that do not exist are told so."""
    anything = TEXTS.map(lambda text: b"/" + _quoted(text)) | st.sampled_from(
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
    await fuzzed(methods.flatmap(lambda method: requests(method, anything)), None)


def test_the_fuzzed_order_is_no_order_of_the_sandbox() -> None:
    """What is changed for these tests is theirs."""
    assert ORDER not in {DEMO_ORDER_ID, EMPTY_ORDER_ID}
