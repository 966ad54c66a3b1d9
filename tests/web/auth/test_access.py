"""Keys, the operator's token, sessions and links: who gets in, who does not, and that no secret gets out."""

import asyncio
import hashlib
import hmac
import io
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer, URLSafeTimedSerializer
from itsdangerous.encoding import base64_decode
from pydantic import SecretStr
from yarl import URL

from service.monitoring.logs import configure_logs
from service.sandbox import DEMO_ORDER_ID, PARTIAL_ORDER_ID, Sandbox
from service.server.run import serving
from service.web.auth.credentials import Credentials, Role, ServiceKey
from service.web.auth.rate_limit import FAILURE_WINDOW_SECONDS, MAX_ADDRESSES, AuthFailureLimit
from service.web.auth.tokens import LinkRejected, LinkTokens, SessionTokens
from tests.archives import download, images_url
from tests.conftest import StartService, settings_for

OLD, NEW, PAYING, ADMIN = "old-key-of-callers", "new-key-of-callers", "key-that-may-spend", "token-of-the-operator"
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
SIGNING, OLD_SIGNING = "s" * 32, "t" * 32
KEYS = (SecretStr(OLD), SecretStr(NEW), SecretStr(PAYING + ":full"))
LOCKED: dict[str, Any] = {
    "service_api_keys": KEYS,
    "admin_token": SecretStr(ADMIN),
    "signing_keys": (SecretStr(SIGNING), SecretStr(OLD_SIGNING)),
    "allow_full_quality": False,
}


@pytest.fixture
async def locked(start_service: StartService) -> str:
    """The URL of a service with keys, an operator and links."""
    return await start_service(**LOCKED)


@pytest.fixture
def logged(sandbox: Sandbox) -> Iterator[io.StringIO]:
    """What the service logs."""
    stream = io.StringIO()
    configure_logs(log_format="json", level="debug", secrets=settings_for(sandbox, **LOCKED).secrets(), stream=stream)
    yield stream
    configure_logs(log_format="json", level="info")


async def status_and_type(client: aiohttp.ClientSession, url: str | URL, **headers: str) -> tuple[int, str]:
    """Return the status of a GET, and the slug of the problem if it is one."""
    async with client.get(URL(str(url), encoded=True), headers=headers) as response:
        if response.content_type != "application/problem+json":
            await response.read()
            return response.status, ""
        return response.status, (await response.json())["type"].removeprefix("/problems/")


async def link_to(
    client: aiohttp.ClientSession, service: str, key: str, order: str = DEMO_ORDER_ID, **asked: object
) -> URL:
    """Return a new link."""
    async with client.post(f"{service}/orders/{order}/links", json=asked, headers={"X-API-Key": key}) as response:
        assert response.status == 201, await response.text()
        return URL((await response.json())["url"], encoded=True)


# Keys.


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 401, id="none"),
        pytest.param({"X-API-Key": OLD}, 200, id="one key"),
        pytest.param({"X-API-Key": NEW}, 200, id="another key"),
        pytest.param({"Authorization": f"Bearer {NEW}"}, 200, id="bearer"),
        pytest.param({"X-Admin-Token": ADMIN}, 200, id="operator"),
        pytest.param({"X-API-Key": PAYING}, 200, id="key with a scope"),
        pytest.param({"X-API-Key": PAYING + ":full"}, 401, id="scope is no part of the key"),
        pytest.param({"X-API-Key": OLD + "x"}, 401, id="longer"),
        pytest.param({"X-API-Key": OLD[:-1]}, 401, id="shorter"),
        pytest.param({"X-API-Key": OLD.upper()}, 401, id="other case"),
        pytest.param({"Authorization": f"Basic {NEW}"}, 401, id="basic"),
        pytest.param({"Cookie": f"batch_session={NEW}"}, 401, id="key as cookie"),
    ],
)
async def test_downloads_need_a_key(
    headers: dict[str, str], status: int, locked: str, client: aiohttp.ClientSession
) -> None:
    """With SERVICE_API_KEYS each of them opens a download, in a header only, and nothing else does."""
    found, slug = await status_and_type(client, images_url(locked, DEMO_ORDER_ID), **headers)
    assert (found, slug) == (status, "authentication-required" if status == 401 else "")


@pytest.mark.parametrize(("scope", "full_quality"), [("", 403), (":full", 200)])
async def test_the_original_services_key_closes_the_service(
    scope: str, full_quality: int, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """SERVICE_API_KEY alone requires a key, and beside others it is one more; it spends credits only with ``:full``."""
    for others in ((), KEYS):
        service = await start_service(
            service_api_key=SecretStr("original-services-key" + scope),
            service_api_keys=others,
            allow_full_quality=False,
        )
        url, key = images_url(service, DEMO_ORDER_ID), {"X-API-Key": "original-services-key"}
        assert await status_and_type(client, url) == (401, "authentication-required")
        assert await status_and_type(client, url, **key) == (200, "")
        assert (await status_and_type(client, url, **{"X-API-Key": NEW}))[0] == (200 if others else 401)
        assert (await status_and_type(client, url.update_query(preview="false"), **key))[0] == full_quality


async def test_a_refusal_says_how_to_authenticate(locked: str, client: aiohttp.ClientSession) -> None:
    """A 401 names the scheme (RFC 9110 section 11.6.1), and comes before parameters are looked at."""
    async with client.get(images_url(locked, "no-uuid", "?quality=x")) as response:
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_a_key_in_the_address_opens_nothing(
    locked: str, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """Keys are never taken from a URL, and what stands there is not logged."""
    url = images_url(locked, DEMO_ORDER_ID, f"?api_key={NEW}")
    assert await status_and_type(client, url) == (401, "authentication-required")
    assert await status_and_type(client, url, **{"X-API-Key": NEW}) == (400, "unknown-parameter")
    assert NEW not in logged.getvalue()


async def test_without_keys_everybody_may_download(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """An open service ignores keys that it does not know."""
    service = await start_service()
    url = images_url(service, DEMO_ORDER_ID)
    assert await status_and_type(client, url, **{"X-API-Key": "whatever"}) == (200, "")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"allow_full_quality": False}, "may download previews", id="previews"),
        pytest.param({"allow_full_quality": True}, "may download in full quality and spend credits", id="credits"),
        pytest.param({"admin_token": SecretStr(ADMIN)}, "may download in full quality", id="operator's token only"),
        pytest.param({"service_api_keys": KEYS}, None, id="keys"),
        pytest.param({"service_api_key": SecretStr(OLD)}, None, id="the original service's key"),
    ],
)
async def test_an_open_service_says_so_once(
    changes: dict[str, Any], says: str | None, start_service: StartService, logged: io.StringIO
) -> None:
    """A start without keys logs one warning, on loopback too, which says what every client may do."""
    await start_service(**changes)
    events = [json.loads(line) for line in logged.getvalue().splitlines()]
    found = [
        (one["level"], says is not None and says in one["detail"]) for one in events if one["event"] == "access.open"
    ]
    assert found == ([("warning", True)] if says is not None else [])


async def test_an_open_sandbox_says_nothing(sandbox: Sandbox, logged: io.StringIO) -> None:
    """Nothing behind it is real: the warning would only teach to overlook it."""
    async with serving(settings_for(sandbox), demo_order_id=DEMO_ORDER_ID):
        pass
    assert "service.started" in logged.getvalue()
    assert "access.open" not in logged.getvalue()


# Full quality.


@pytest.mark.parametrize(
    ("key", "query", "status"),
    [
        pytest.param(OLD, "?preview=false", 403, id="key without the right"),
        pytest.param(PAYING, "?preview=false", 200, id="key with it"),
        pytest.param(ADMIN, "?preview=false", 200, id="operator"),
        pytest.param(OLD, "?preview=false&dev_mode=true", 200, id="dev mode spends nothing"),
    ],
)
async def test_full_quality(
    key: str, query: str, status: int, locked: str, client: aiohttp.ClientSession, sandbox: Sandbox
) -> None:
    """Credits are spent only for who may; for others the upstream is not even asked."""
    found = await status_and_type(client, images_url(locked, DEMO_ORDER_ID, query), **{"X-API-Key": key})
    assert found == (status, "full-quality-not-allowed" if status == 403 else "")
    assert bool(sandbox.requests) == (status == 200)


async def test_full_quality_for_all(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """ALLOW_FULL_QUALITY gives the right to every caller; without it an open service gives it to nobody."""
    for allowed, status in ((True, 200), (False, 403)):
        service = await start_service(allow_full_quality=allowed)
        found, _ = await status_and_type(client, images_url(service, DEMO_ORDER_ID, "?preview=false"))
        assert found == status


# The operator.


async def test_without_a_token_nobody_is_the_operator(
    start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """The operator's routes are off, whatever a request carries."""
    service = await start_service(service_api_keys=KEYS)
    for headers in ({}, {"X-Admin-Token": ""}, {"X-Admin-Token": "None"}, {"X-API-Key": PAYING}):
        assert await status_and_type(client, f"{service}/api/sentry/issues", **headers) == (403, "admin-not-configured")


async def test_a_key_is_not_the_operators_token(locked: str, client: aiohttp.ClientSession) -> None:
    """A caller's key does not open what is the operator's."""
    url = f"{locked}/api/sentry/issues"
    assert await status_and_type(client, url, **{"X-API-Key": PAYING}) == (401, "admin-required")
    assert await status_and_type(client, url, **{"X-Admin-Token": ADMIN}) == (503, "sentry-not-configured")


async def test_in_the_sandbox_everybody_is_the_operator(sandbox: Sandbox, client: aiohttp.ClientSession) -> None:
    """Nothing behind it is real, so nothing is locked."""
    async with serving(settings_for(sandbox, allow_full_quality=False), demo_order_id=DEMO_ORDER_ID) as service:
        assert await status_and_type(client, f"{service}/api/sentry/issues") == (503, "sentry-not-configured")
        assert await status_and_type(client, images_url(service, DEMO_ORDER_ID, "?preview=false")) == (200, "")


# Guessing.


async def test_guessing_is_slowed_down(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """After too many wrong keys an address must wait, also with the right one; who sends none goes on."""
    service = await start_service(**LOCKED, auth_failures_per_minute=3)
    url = images_url(service, DEMO_ORDER_ID)
    for number in range(3):
        assert (await status_and_type(client, url, **{"X-API-Key": f"guess-{number}"}))[0] == 401
    async with client.get(url, headers={"X-API-Key": NEW}) as response:
        assert response.status == 429
        assert 1 <= int(response.headers["Retry-After"]) <= FAILURE_WINDOW_SECONDS
    async with client.post(f"{service}/session", json={"key": NEW}) as response:
        assert response.status == 429
    assert (await status_and_type(client, f"{service}/health"))[0] == 200
    assert (await status_and_type(client, url))[0] == 401


@pytest.mark.parametrize("key", ["no-key-of-the-service", NEW], ids=["wrong", "right behind wrong ones"])
async def test_guesses_whose_bodies_come_late_are_limited(key: str, start_service: StartService) -> None:
    """The limit is checked when a guess is judged: 50 headers first and all bodies then do not get around it."""
    service = await start_service(**LOCKED, auth_failures_per_minute=3)
    async with AsyncExitStack() as stack:
        bodies = [b'{"key": "%s"}' % guess.encode() for guess in ["no-key-of-the-service"] * 49 + [key]]
        connections = [await stack.enter_async_context(sign_in_begun(service, len(body))) for body in bodies]
        for reader, _ in connections:
            assert await reader.readexactly(len(GO_ON)) == GO_ON, "each waits for its body"
        statuses = []
        for (reader, writer), body in zip(connections, bodies, strict=True):
            writer.write(body)
            statuses.append(int((await reader.readuntil(b"\r\n\r\n")).split()[1]))
    assert statuses == [401] * 3 + [429] * 47


async def test_guesses_whose_bodies_come_at_once_are_limited(start_service: StartService) -> None:
    """Nothing lies between the check and the count: of bodies that arrive together no more are judged."""
    service = await start_service(**LOCKED, auth_failures_per_minute=3)
    body = b'{"key": "no-key-of-the-service"}'
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(sign_in_begun(service, len(body))) for _ in range(50)]
        for reader, _ in connections:
            assert await reader.readexactly(len(GO_ON)) == GO_ON
        for _, writer in connections:
            writer.write(body)
        headers = await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader, _ in connections))
    assert sorted(int(one.split()[1]) for one in headers) == [401] * 3 + [429] * 47


@asynccontextmanager
async def sign_in_begun(service: str, length: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send the header of a sign-in, which asks for 100 (Continue) before its body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(service).port)
    writer.write(
        b"POST /session HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length
    )
    try:
        yield reader, writer
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def test_addresses_behind_proxies_are_told_apart(
    start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """With TRUSTED_PROXY_HOPS the address is what the outermost trusted proxy says, not what a client writes."""
    service = await start_service(**LOCKED, auth_failures_per_minute=1, trusted_proxy_hops=1)
    url = images_url(service, DEMO_ORDER_ID)

    async def guess(forwarded: str, key: str) -> int:
        return (await status_and_type(client, url, **{"X-API-Key": key, "X-Forwarded-For": forwarded}))[0]

    assert await guess("198.51.100.1", "wrong") == 401
    assert await guess("198.51.100.1", NEW) == 429
    assert await guess("203.0.113.9, 198.51.100.1", NEW) == 429, "made up by the caller"
    assert await guess("198.51.100.2", NEW) == 200


@pytest.mark.parametrize(
    ("one", "other", "status"),
    [
        pytest.param("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", 429, id="one network"),
        pytest.param("2001:db8:1:2::1", "2001:db8:1:3::1", 401, id="another network"),
        pytest.param("2001:DB8:1:2:0:0:0:1", "2001:db8:1:2::1", 429, id="other spelling"),
        pytest.param("198.51.100.1", "198.51.100.2", 401, id="IPv4"),
        pytest.param("::ffff:198.51.100.1", "198.51.100.1", 429, id="IPv4 in IPv6"),
        pytest.param("::ffff:198.51.100.1", "::ffff:198.51.100.2", 401, id="others in IPv6"),
        pytest.param("unknown", "_hidden", 401, id="no addresses"),
    ],
)
async def test_an_ipv6_network_is_one_caller(
    one: str, other: str, status: int, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Whoever has one IPv6 address has 2**64: the guesses of all of them count together."""
    service = await start_service(**LOCKED, auth_failures_per_minute=1, trusted_proxy_hops=1)
    url = images_url(service, DEMO_ORDER_ID)
    found = [
        (await status_and_type(client, url, **{"X-API-Key": "wrong", "X-Forwarded-For": address}))[0]
        for address in (one, other)
    ]
    assert found == [401, status]


@pytest.mark.parametrize(("hops", "times"), [(0, 1), (1, 0)])
async def test_a_proxy_that_the_settings_do_not_know_of_is_told_once(
    hops: int, times: int, start_service: StartService, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """X-Forwarded-For without TRUSTED_PROXY_HOPS is one warning for each start, which does not repeat what came."""
    service = await start_service(**LOCKED, trusted_proxy_hops=hops)
    await status_and_type(client, f"{service}/health")
    assert "proxy.ignored" not in logged.getvalue()
    for _ in range(3):
        await status_and_type(client, f"{service}/nowhere", **{"X-Forwarded-For": "203.0.113.7"})
    assert logged.getvalue().count('"proxy.ignored"') == times
    assert "203.0.113.7" not in logged.getvalue()


def test_the_table_of_failures_is_bounded() -> None:
    """A flood of addresses forgets the oldest; a minute forgives."""
    now = itertools.count(0.0, 0.001)
    limit = AuthFailureLimit(1, lambda: next(now))
    for number in range(MAX_ADDRESSES + 1):
        limit.record_failure(str(number))
    assert limit.retry_after_seconds("0") == 0
    assert limit.retry_after_seconds("1") > 0
    later = AuthFailureLimit(1, iter([0.0, 1.0, FAILURE_WINDOW_SECONDS]).__next__)
    later.record_failure("a")
    assert later.retry_after_seconds("a") == FAILURE_WINDOW_SECONDS - 1
    assert later.retry_after_seconds("a") == 0


# Signatures.


def test_signatures_are_made_with_sha_256() -> None:
    """Links and sessions end in an HMAC-SHA-256, and what was signed by SHA-1 with the same key opens nothing."""
    credentials = Credentials([ServiceKey(NEW)])
    sessions, links = SessionTokens(credentials, ttl_seconds=60), LinkTokens([SIGNING], clock=time.time)
    cookie = sessions.create(NEW)
    token, _ = links.create(DEMO_ORDER_ID, [], ttl_seconds=60, full=False)
    assert cookie is not None
    assert sessions.verify(cookie) is Role.DOWNLOAD
    assert links.verify(token, DEMO_ORDER_ID, []) is Role.DOWNLOAD
    for signed in (cookie, token):
        assert len(base64_decode(signed.rpartition(".")[2])) == hashlib.sha256().digest_size
    weak_cookie = URLSafeTimedSerializer(credentials.session_key, "session").dumps(credentials.fingerprint(NEW))
    assert sessions.verify(weak_cookie) is None
    weak_token = URLSafeSerializer(SIGNING, "link").dumps(
        URLSafeSerializer(SIGNING).load_payload(token.encode().rpartition(b".")[0])
    )
    with pytest.raises(LinkRejected):
        links.verify_signature(weak_token)


# Sessions.


@pytest.mark.parametrize(("key", "role"), [(NEW, "download"), (PAYING, "full"), (ADMIN, "admin")])
@pytest.mark.parametrize("form", ["json", "data"])
async def test_a_session_is_worth_its_key(key: str, role: str, form: str, locked: str) -> None:
    """Who signs in may do what its key may, until it signs out; the cookie is out of reach for scripts."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        async with browser.get(f"{locked}/session") as response:
            assert await response.json() == {
                "role": None, "key_required": True, "admin_enabled": True, "links_enabled": True, "signed_in": False,
            }  # fmt: skip
            assert not response.cookies, "nobody is given a session"
        fields: Any = {form: {"key": key}}
        async with browser.post(f"{locked}/session", **fields) as response:
            assert (response.status, (await response.json())["role"]) == (200, role)
            cookie = response.cookies["batch_session"]
        assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Strict", "/")
        assert key not in cookie.value
        status, _ = await status_and_type(browser, images_url(locked, DEMO_ORDER_ID, "?preview=false"))
        assert status == (403 if role == "download" else 200)
        async with browser.delete(f"{locked}/session") as response:
            assert response.status == 204
        assert (await status_and_type(browser, images_url(locked, DEMO_ORDER_ID)))[0] == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b'{"key": "wrong-key-wrong-key"}', 401, id="wrong"),
        pytest.param(b"{}", 400, id="none"),
        pytest.param(b"[1]", 400, id="no object"),
        pytest.param(b"{", 400, id="no JSON"),
        pytest.param(b"[" * 60_000, 400, id="too deep"),
        pytest.param(b'{"key": ["a", "b"]}', 400, id="two"),
        pytest.param(b" " * 5000, 400, id="too large"),
    ],
)
async def test_a_sign_in_that_fails(body: bytes, status: int, locked: str, client: aiohttp.ClientSession) -> None:
    """A wrong key is a 401, a body that has none a 400; neither brings a cookie."""
    headers = {"Content-Type": "application/json"}
    async with client.post(f"{locked}/session", data=body, headers=headers) as response:
        assert response.status == status
        assert not response.cookies


async def test_the_cookie_is_secure_behind_https(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """Where the service is reached by https, the cookie never leaves by http."""
    for settings, headers, secure in (
        ({"public_url": "https://zip.example.com"}, {}, True),
        ({"trusted_proxy_hops": 1}, {"X-Forwarded-Proto": "https"}, True),
        ({}, {"X-Forwarded-Proto": "https"}, ""),
    ):
        service = await start_service(**LOCKED, **settings)
        async with client.post(f"{service}/session", json={"key": NEW}, headers=headers) as response:
            assert response.cookies["batch_session"]["secure"] == secure


async def test_another_sites_page_cannot_use_the_session(locked: str, client: aiohttp.ClientSession) -> None:
    """What changes something is done by cookie only for our own page."""
    async with client.post(f"{locked}/session", json={"key": NEW}) as response:
        cookie = response.cookies["batch_session"].value
    url = f"{locked}/orders/{DEMO_ORDER_ID}/links"
    for site, status in (("same-origin", 201), ("cross-site", 401), ("same-site", 401)):
        headers = {"Cookie": f"batch_session={cookie}", "Sec-Fetch-Site": site}
        async with client.post(url, json={}, headers=headers) as response:
            assert response.status == status


async def test_another_sites_page_cannot_sign_a_browser_in(locked: str, client: aiohttp.ClientSession) -> None:
    """Nobody is put into somebody else's session by a form on another site."""
    for site, status in (("cross-site", 401), ("same-site", 401), ("none", 200)):
        headers = {"Sec-Fetch-Site": site}
        async with client.post(f"{locked}/session", data={"key": NEW}, headers=headers) as response:
            assert (response.status, bool(response.cookies)) == (status, status == 200)


def test_sessions_end_with_time_and_with_their_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session ends after its time, and at once when its key is taken away; one that was tampered with is none."""
    credentials = Credentials([ServiceKey(OLD), ServiceKey(NEW)])
    sessions = SessionTokens(credentials, ttl_seconds=60)
    cookie = sessions.create(NEW)
    assert cookie is not None
    assert sessions.verify(cookie) is Role.DOWNLOAD
    assert SessionTokens(Credentials([ServiceKey(OLD), ServiceKey(NEW)]), ttl_seconds=60).verify(cookie), (
        "on each replica"
    )
    assert SessionTokens(Credentials([ServiceKey(OLD)]), ttl_seconds=60).verify(cookie) is None
    signed, _, signature = cookie.rpartition(".")
    # The first character: of the last one, base64 takes only some of the bits.
    assert sessions.verify(f"{signed}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}") is None
    assert sessions.create("another-key-of-callers") is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 62)
    assert sessions.verify(cookie) is None


def test_a_session_does_not_help_to_guess_other_secrets() -> None:
    """Who holds a cookie and its key must pay for every guess at the rest: the key that signs is made slowly."""
    secrets = (NEW, ADMIN)
    credentials = Credentials([ServiceKey(NEW)], ADMIN)
    quick = hashlib.sha256("\0".join(secrets).encode()).digest()
    slow = hashlib.scrypt("\0".join(secrets).encode(), salt=b"batch sessions", n=2**14, r=8, p=1)
    assert credentials.session_key not in {hmac.digest(quick, b"session", "sha256"), quick}
    assert credentials.session_key == hmac.digest(slow, b"session", "sha256")


# Links.


async def test_a_link_needs_no_key(locked: str, client: aiohttp.ClientSession) -> None:
    """A link opens exactly the download it was made for, by GET and HEAD."""
    link = await link_to(client, locked, NEW, parameters={"format": "png", "quality": 80})
    assert link.query["format"] == "png"
    assert len(await download(client, link)) == 14
    async with client.head(link) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("change", "slug"),
    [
        pytest.param(lambda url: url.update_query(quality="81"), "link-invalid", id="another value"),
        pytest.param(lambda url: url.update_query(preview="false"), "link-invalid", id="one more parameter"),
        pytest.param(lambda url: url.without_query_params("format"), "link-invalid", id="one less"),
        pytest.param(
            lambda url: URL(str(url).replace(DEMO_ORDER_ID, PARTIAL_ORDER_ID)), "link-invalid", id="another order"
        ),
        pytest.param(lambda url: url.update_query(link=""), "link-invalid", id="empty"),
        pytest.param(lambda url: url.extend_query(link=url.query["link"]), "link-invalid", id="twice"),
        pytest.param(lambda url: url.without_query_params("link"), "authentication-required", id="none"),
    ],
)
async def test_a_link_opens_nothing_else(
    change: Any, slug: str, locked: str, client: aiohttp.ClientSession, sandbox: Sandbox
) -> None:
    """Any other request with its token is refused before the upstream is asked."""
    link = await link_to(client, locked, NEW, parameters={"format": "png", "quality": "80"})
    _, found = await status_and_type(client, change(link))
    assert found == slug
    assert sandbox.requests == []


async def test_a_link_shows_its_own_downloads(locked: str, client: aiohttp.ClientSession) -> None:
    """Whoever downloads by a link may watch it by that link; what others download, by key or link, stays hidden."""
    link = await link_to(client, locked, NEW, parameters={"quality": 80})
    other = await link_to(client, locked, NEW, parameters={"quality": 81})
    by_link, by_key = uuid.uuid4(), uuid.uuid4()
    watching = asyncio.create_task(read(client, f"{locked}/archives/{by_link}/events?link={link.query['link']}"))
    await download(client, link.update_query(archive_id=str(by_link)))
    url = images_url(locked, DEMO_ORDER_ID, f"?archive_id={by_key}")
    async with client.get(url, headers={"X-API-Key": NEW}) as response:
        await response.read()
    assert b"event: end" in await watching
    for ending in ("", "/events"):
        for archive_id, token, status, slug in (
            (by_link, link.query["link"], 200, ""),
            (by_link, other.query["link"], 403, "link-invalid"),
            (by_link, link.query["link"] + "x", 403, "link-invalid"),
            (by_key, link.query["link"], 403, "link-invalid"),
        ):
            url = URL(f"{locked}/archives/{archive_id}{ending}?link={token}", encoded=True)
            assert await status_and_type(client, url) == (status, slug)
        path = f"{locked}/archives/{by_link}{ending}"
        assert (await status_and_type(client, path))[0] == 401
        assert (await status_and_type(client, path, **{"X-API-Key": NEW}))[0] == 200
    receipt = await read(client, f"{locked}/archives/{by_link}?link={link.query['link']}")
    assert link.query["link"].encode() not in receipt


async def read(client: aiohttp.ClientSession, url: str) -> bytes:
    """Return what a GET brings."""
    async with client.get(URL(url, encoded=True)) as response:
        return await response.read()


async def test_a_link_to_full_quality(locked: str, client: aiohttp.ClientSession) -> None:
    """Only who may spend credits can give that right away."""
    parameters = {"preview": False}
    url = f"{locked}/orders/{DEMO_ORDER_ID}/links"
    async with client.post(url, json={"parameters": parameters}, headers={"X-API-Key": NEW}) as response:
        assert (response.status, (await response.json())["type"]) == (403, "/problems/full-quality-not-allowed")
    link = await link_to(client, locked, PAYING, parameters=parameters)
    assert len(await download(client, link)) == 14


@pytest.mark.parametrize(
    "body",
    [b"{", pytest.param(b"[" * 60_000, id="too deep"), b"[]", b'{"more": 1}', b'{"expires_in_seconds": 0}',
     b'{"expires_in_seconds": 604801}', b'{"expires_in_seconds": true}', b'{"parameters": []}',
     b'{"parameters": {"only": [{}]}}', b'{"parameters": {"link": "x"}}', b'{"parameters": {"qualty": 1}}',
     b'{"parameters": {"quality": 91}}'],
)  # fmt: skip
async def test_a_link_that_cannot_be_made(body: bytes, locked: str, client: aiohttp.ClientSession) -> None:
    """A request for a link that would not work is refused when it is made, not when it is used."""
    url = f"{locked}/orders/{DEMO_ORDER_ID}/links"
    async with client.post(url, data=body, headers={"X-API-Key": NEW}) as response:
        assert response.status == 400


async def test_links_need_signing_keys(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """Without SIGNING_KEYS none can be made, and none is valid."""
    service = await start_service()
    async with client.post(f"{service}/orders/{DEMO_ORDER_ID}/links", json={}) as response:
        assert (response.status, (await response.json())["type"]) == (503, "/problems/links-not-configured")
    assert (await status_and_type(client, images_url(service, DEMO_ORDER_ID, "?link=x")))[1] == "link-invalid"


async def test_retry_addresses_do_not_hold_the_link(locked: str, client: aiohttp.ClientSession) -> None:
    """The token opens only what it was made for, so report and manifest do not repeat it."""
    link = await link_to(client, locked, NEW, order=PARTIAL_ORDER_ID, parameters={"format": "png"})
    token = link.query["link"].encode()
    files = await download(client, link)
    assert all(token not in content for content in files.values())
    assert b"format=png" in files["_manifest.json"]


def test_links_expire_and_keys_rotate() -> None:
    """A link ends in time; the old key still verifies while it is listed, and no longer when it is not."""
    now = [1000.0]
    old = LinkTokens([OLD_SIGNING], clock=lambda: now[0])
    token, expires_at = old.create(DEMO_ORDER_ID, [("format", "png")], ttl_seconds=60, full=True)
    assert expires_at == 1060
    both = LinkTokens([SIGNING, OLD_SIGNING], clock=lambda: now[0])
    assert both.verify(token, DEMO_ORDER_ID, [("format", "png")]) is Role.FULL
    newer, _ = both.create(DEMO_ORDER_ID, [], ttl_seconds=60, full=False)
    assert LinkTokens([SIGNING], clock=lambda: now[0]).verify(newer, DEMO_ORDER_ID.upper(), []) is Role.DOWNLOAD
    with pytest.raises(LinkRejected, match="invalid"):
        LinkTokens([SIGNING], clock=lambda: now[0]).verify(token, DEMO_ORDER_ID, [("format", "png")])
    now[0] = 1060
    with pytest.raises(LinkRejected, match="expired"):
        both.verify(token, DEMO_ORDER_ID, [("format", "png")])


@given(st.integers(0, 200), st.characters(codec="ascii"))
def test_a_token_changed_anywhere_is_refused(place: int, character: str) -> None:
    """Whatever character of a token is replaced, it opens nothing; what decodes to the same bytes may still."""
    links = LinkTokens([SIGNING], clock=lambda: 0.0)
    token, _ = links.create(DEMO_ORDER_ID, [], ttl_seconds=60, full=False)
    place %= len(token) - 1  # the last holds two bits that base64 does not use
    changed = token[:place] + character + token[place + 1 :]
    if changed == token:
        return
    with pytest.raises(LinkRejected):
        links.verify(changed, DEMO_ORDER_ID, [])


@given(st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4)), max_size=4), st.text(max_size=4))
def test_a_link_depends_on_every_parameter(query: list[tuple[str, str]], more: str) -> None:
    """Order of parameters does not matter, everything else does."""
    links = LinkTokens([SIGNING], clock=lambda: 0.0)
    token, _ = links.create(DEMO_ORDER_ID, query, ttl_seconds=60, full=False)
    assert links.verify(token, DEMO_ORDER_ID, reversed(query))
    with pytest.raises(LinkRejected):
        links.verify(token, DEMO_ORDER_ID, [*query, (more, more)])


# What must not get out.


async def test_no_secret_is_logged(locked: str, client: aiohttp.ClientSession, logged: io.StringIO) -> None:
    """Through sign-ins, links, refusals and downloads, no key, token, cookie or link gets into the log."""
    async with client.post(f"{locked}/session", json={"key": ADMIN}) as response:
        cookie = response.cookies["batch_session"].value
    async with client.post(f"{locked}/session", data={"key": "a-wrong-key-to-see"}):
        pass
    link = await link_to(client, locked, PAYING, parameters={"preview": "false"})
    token = link.query["link"]
    await download(client, link)
    await status_and_type(client, f"{link}x")
    await status_and_type(client, images_url(locked, DEMO_ORDER_ID), Authorization="Bearer another-wrong-key")
    await asyncio.sleep(0)
    written = logged.getvalue()
    assert "session.started" in written
    assert "session.rejected" in written
    for secret in (OLD, NEW, PAYING, ADMIN, SIGNING, cookie, token, "a-wrong-key", "another-wrong-key"):
        assert secret not in written
