"""The SSRF policy at name resolution: no address that is not public is ever dialled."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohappyeyeballs
import aiohttp
import pytest
from aiohttp.abc import ResolveResult
from yarl import URL

from service.model import Reason
from service.sandbox import DEMO_ORDER_ID, Fault, Kind, Sandbox
from service.upstream.http.connection import ConnectionPool
from service.upstream.http.dial import Dialer
from service.upstream.http.fetcher import Fetcher
from service.upstream.http.resolver import AddressRejected, PublicResolver
from service.upstream.http.session import open_session
from service.upstream.rate_limiter import RateLimiter
from service.upstream.retry import AttemptFailed
from service.upstream.url_policy import UrlPolicy

API = URL("https://api.example.com")
PUBLIC = "52.218.0.1"


def resolved(address: str, port: int = 0) -> ResolveResult:
    """Return one result of a resolution."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(hostname="x", host=address, port=port, family=family, proto=0, flags=0)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let the system's resolver return these addresses for every name."""

    async def resolve(_self: object, _host: str, port: int = 0, _family: int = 0) -> list[ResolveResult]:
        return [resolved(address, port) for address in addresses]

    def getaddrinfo(_host: str, port: int, **_options: object) -> list[tuple[object, ...]]:
        return [(resolved(one)["family"], socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)
    monkeypatch.setattr("service.upstream.http.dial.socket.getaddrinfo", getaddrinfo)


@asynccontextmanager
async def open_fetcher(url_policy: UrlPolicy, *, key: str = "hush") -> AsyncIterator[Fetcher]:
    """Open a fetcher with a session of its own."""
    pool = ConnectionPool(Dialer(allow_private=False, connect_timeout_seconds=5))
    async with open_session(allow_private=False, connect_timeout_seconds=5) as session:
        clock = asyncio.get_running_loop().time
        yield Fetcher(
            session, pool, url_policy, rate_limiter=RateLimiter(1000, clock=clock), api_headers={"x-api-key": key},
            idle_timeout_seconds=5,
        )  # fmt: skip
        pool.close()


async def send(fetcher: Fetcher, method: str, url: URL) -> None:
    """Send a request, and ignore its response."""
    if method == "GET":
        await fetcher.get(url, {}, max_bytes=1000)
        return
    async with fetcher.send(method, url, {}, b"x"):
        pass


@pytest.mark.parametrize(
    "addresses",
    [
        pytest.param(["127.0.0.1"], id="loopback"),
        pytest.param(["10.1.2.3"], id="private"),
        pytest.param(["169.254.169.254"], id="metadata"),
        pytest.param(["100.64.0.1"], id="carrier_nat"),
        pytest.param(["0.0.0.0"], id="unspecified"),
        pytest.param(["224.0.0.1"], id="multicast"),
        pytest.param(["::1"], id="v6_loopback"),
        pytest.param(["fe80::1%1"], id="v6_link_local"),
        pytest.param(["fd00:ec2::254"], id="v6_unique_local"),
        pytest.param(["::ffff:10.0.0.1"], id="mapped"),
        pytest.param(["64:ff9b::a00:1"], id="nat64"),
        pytest.param(["2002:7f00:1::"], id="6to4"),
        pytest.param([PUBLIC, "127.0.0.1"], id="one_of_two"),
        pytest.param(["2600:1f18::1", "10.0.0.1"], id="one_of_two_families"),
    ],
)
async def test_name_with_a_private_address_is_rejected(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One address that is not public among a name's addresses is enough, of either family."""
    resolve_to(monkeypatch, *addresses)
    resolver = PublicResolver(allow_private=False)
    with pytest.raises(AddressRejected, match=r"files\.example\.com has an address that is not public"):
        await resolver.resolve("files.example.com", 443)
    assert [one["host"] for one in await PublicResolver(allow_private=True).resolve("files.example.com")] == addresses


async def test_name_with_public_addresses_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The results of the system's resolver are returned unchanged."""
    resolve_to(monkeypatch, PUBLIC, "2600:1f18::1")
    found = await PublicResolver(allow_private=False).resolve("files.example.com", 443)
    assert found == [resolved(PUBLIC, 443), resolved("2600:1f18::1", 443)]


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("127.0.0.1", id="literal"),
        pytest.param("[::1]", id="literal_v6"),
        pytest.param("[::ffff:127.0.0.1]", id="mapped"),
        pytest.param("2130706433", id="decimal"),
        pytest.param("0x7f000001", id="hexadecimal"),
        pytest.param("0177.0.0.1", id="octal"),
        pytest.param("127.1", id="short"),
        pytest.param("127.0.0.1.", id="trailing_dot"),
        pytest.param("\uff11\uff12\uff17.0.0.1", id="wide_digits"),
        pytest.param("127\u30020\u30020\u30021", id="ideographic_dots"),
        pytest.param("\u24dbocalhost", id="circled_letter"),
        pytest.param("localhost", id="name"),
        pytest.param("files.example.com", id="name_with_private_address"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.usefixtures("nothing_left_behind")
async def test_private_address_is_never_dialled(method: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No spelling of loopback, and no name that resolves to it, opens a connection: for images and for uploads."""
    if host == "files.example.com":
        resolve_to(monkeypatch, "127.0.0.1")
    dialled: list[object] = []

    async def dial(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.append(writer.get_extra_info("peername"))
        writer.close()

    async with await asyncio.start_server(dial, "127.0.0.1") as listening, open_fetcher(UrlPolicy(API)) as fetcher:
        url = URL(f"https://{host}:{listening.sockets[0].getsockname()[1]}/a", encoded=True)
        with pytest.raises(AttemptFailed) as caught:
            await send(fetcher, method, url)
    assert caught.value.failure.reason is Reason.REDIRECT_REFUSED
    assert dialled == []


async def test_redirect_to_a_private_name_is_not_followed(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host name of a redirect is resolved and checked like every other, when the connection is made."""
    image = sandbox.orders[DEMO_ORDER_ID].images[0]
    api, inside = URL(sandbox.api_base), URL(sandbox.storage_origin)
    location = f"{inside.with_host('inside.example.com')}/enhanced/1"
    sandbox.faults.always(image.image_id, Fault(Kind.REDIRECT_TO, location=location))

    def getaddrinfo(host: str, port: int, **_options: object) -> list[tuple[object, ...]]:
        address = "127.0.0.1" if host == "inside.example.com" else PUBLIC
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    dial = aiohappyeyeballs.start_connection

    async def dial_sandbox(addr_infos: Sequence[aiohappyeyeballs.AddrInfoType], **options: Any) -> socket.socket:
        assert {info[-1][0] for info in addr_infos} == {PUBLIC}
        return await dial([(*info[:-1], ("127.0.0.1", info[-1][1])) for info in addr_infos], **options)

    monkeypatch.setattr("service.upstream.http.dial.socket.getaddrinfo", getaddrinfo)
    monkeypatch.setattr(aiohappyeyeballs, "start_connection", dial_sandbox)  # the public address is the sandbox here
    origin = api.origin().with_host("api.example.com")
    async with open_fetcher(UrlPolicy(origin, allow_private=True), key=sandbox.api_key) as fetcher:
        url = origin.with_path(f"{api.path}/images/{image.image_id}/enhanced").with_query(preview="true")
        with pytest.raises(AttemptFailed) as caught:
            await send(fetcher, "GET", url)
    assert caught.value.failure.reason is Reason.REDIRECT_REFUSED
    assert caught.value.failure.detail == "inside.example.com has an address that is not public"


@pytest.mark.usefixtures("nothing_left_behind")
async def test_name_is_resolved_once_for_all_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to one name share its look-up, and the next ones use its result; a failed look-up is repeated."""
    lookups: list[str] = []

    def getaddrinfo(host: str, _port: int, **_options: object) -> list[tuple[object, ...]]:
        lookups.append(host)
        if len(lookups) == 1:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 443))]

    monkeypatch.setattr("service.upstream.http.dial.socket.getaddrinfo", getaddrinfo)
    async with open_fetcher(UrlPolicy(API)) as fetcher:
        reasons = []
        for count in (1, 3, 1):
            sent = [send(fetcher, "GET", URL("https://files.example.com/a")) for _ in range(count)]
            results = await asyncio.gather(*sent, return_exceptions=True)
            reasons += [error.failure.reason for error in results if isinstance(error, AttemptFailed)]
    assert reasons == [Reason.CONNECTION_FAILED, *[Reason.REDIRECT_REFUSED] * 4]
    assert lookups == ["files.example.com"] * 2
