"""Rate limit of wrong keys, and the client address that it counts by."""

import asyncio
import io
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
from yarl import URL

from service.sandbox import DEMO_ORDER_ID
from service.web.auth.rate_limit import FAILURE_WINDOW_SECONDS, MAX_ADDRESSES, AuthFailureLimit
from tests.archives import images_url
from tests.conftest import StartService
from tests.web.auth.conftest import (
    LOCKED,
    NEW,
    status_and_type,
)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_wrong_keys_are_rate_limited(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """After too many wrong keys an address gets 429, also with the right one; requests without a key are unaffected."""
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


@pytest.mark.parametrize("key", ["not-a-key-of-service", NEW], ids=["wrong", "right after wrong ones"])
async def test_sign_ins_with_late_bodies_are_rate_limited(key: str, start_service: StartService) -> None:
    """The limit is checked when a key is verified: sending 50 headers first and all bodies later does not evade it."""
    service = await start_service(**LOCKED, auth_failures_per_minute=3)
    async with AsyncExitStack() as stack:
        bodies = [b'{"key": "%s"}' % guess.encode() for guess in ["not-a-key-of-service"] * 49 + [key]]
        connections = [await stack.enter_async_context(started_sign_in(service, len(body))) for body in bodies]
        for reader, _ in connections:
            assert await reader.readexactly(len(CONTINUE)) == CONTINUE, "each waits for its body"
        statuses = []
        for (reader, writer), body in zip(connections, bodies, strict=True):
            writer.write(body)
            statuses.append(int((await reader.readuntil(b"\r\n\r\n")).split()[1]))
    assert statuses == [401] * 3 + [429] * 47


async def test_concurrent_sign_ins_are_rate_limited(start_service: StartService) -> None:
    """Check and count are atomic: of bodies that arrive together, no more than the limit are verified."""
    service = await start_service(**LOCKED, auth_failures_per_minute=3)
    body = b'{"key": "not-a-key-of-service"}'
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(started_sign_in(service, len(body))) for _ in range(50)]
        for reader, _ in connections:
            assert await reader.readexactly(len(CONTINUE)) == CONTINUE
        for _, writer in connections:
            writer.write(body)
        headers = await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader, _ in connections))
    assert sorted(int(one.split()[1]) for one in headers) == [401] * 3 + [429] * 47


@asynccontextmanager
async def started_sign_in(
    service: str, length: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send the headers of a sign-in that expects 100 (Continue) before its body."""
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


async def test_client_address_comes_from_the_trusted_proxy(
    start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """With TRUSTED_PROXY_HOPS the address is the one that the outermost trusted proxy appended, not a forged one."""
    service = await start_service(**LOCKED, auth_failures_per_minute=1, trusted_proxy_hops=1)
    url = images_url(service, DEMO_ORDER_ID)

    async def guess(forwarded: str, key: str) -> int:
        return (await status_and_type(client, url, **{"X-API-Key": key, "X-Forwarded-For": forwarded}))[0]

    assert await guess("198.51.100.1", "wrong") == 401
    assert await guess("198.51.100.1", NEW) == 429
    assert await guess("203.0.113.9, 198.51.100.1", NEW) == 429, "forged by the client"
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
async def test_ipv6_network_shares_one_limit(
    one: str, other: str, status: int, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """A client with one IPv6 address has 2**64: wrong keys from its /64 count together."""
    service = await start_service(**LOCKED, auth_failures_per_minute=1, trusted_proxy_hops=1)
    url = images_url(service, DEMO_ORDER_ID)
    found = [
        (await status_and_type(client, url, **{"X-API-Key": "wrong", "X-Forwarded-For": address}))[0]
        for address in (one, other)
    ]
    assert found == [401, status]


@pytest.mark.parametrize(("hops", "times"), [(0, 1), (1, 0)])
async def test_unconfigured_proxy_is_logged_once(
    hops: int, times: int, start_service: StartService, client: aiohttp.ClientSession, logged: io.StringIO
) -> None:
    """X-Forwarded-For without TRUSTED_PROXY_HOPS is one warning for each start, without the header's value."""
    service = await start_service(**LOCKED, trusted_proxy_hops=hops)
    await status_and_type(client, f"{service}/health")
    assert "proxy.ignored" not in logged.getvalue()
    for _ in range(3):
        await status_and_type(client, f"{service}/nowhere", **{"X-Forwarded-For": "203.0.113.7"})
    assert logged.getvalue().count('"proxy.ignored"') == times
    assert "203.0.113.7" not in logged.getvalue()


def test_failure_table_is_bounded() -> None:
    """A flood of addresses evicts the oldest; failures expire after a minute."""
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
