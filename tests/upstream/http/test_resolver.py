"""The SSRF policy at name resolution: no address that is not public is ever dialled."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp.abc import ResolveResult
from yarl import URL

from service.model import Reason
from service.sandbox import DEMO_ORDER_ID, Fault, Kind, Sandbox
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

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)


@asynccontextmanager
async def open_fetcher(url_policy: UrlPolicy, *, key: str = "hush") -> AsyncIterator[Fetcher]:
    """Open a fetcher with a session of its own."""
    async with open_session(allow_private=False, connect_timeout_seconds=5) as session:
        clock = asyncio.get_running_loop().time
        yield Fetcher(
            session, url_policy, rate_limiter=RateLimiter(1000, clock=clock), api_headers={"x-api-key": key},
            idle_timeout_seconds=5,
        )  # fmt: skip


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
        opened = fetcher.get(url, {}) if method == "GET" else fetcher.send("PUT", url, {}, b"x")
        with pytest.raises(AttemptFailed) as caught:
            async with opened:
                pass
    assert caught.value.failure.reason is Reason.REDIRECT_REFUSED
    assert dialled == []


async def test_redirect_to_a_private_name_is_not_followed(sandbox: Sandbox) -> None:
    """The host name of a redirect is resolved and checked like every other, when the connection is made."""
    image = sandbox.orders[DEMO_ORDER_ID].images[0]
    inside = URL(sandbox.storage_origin).with_host("localhost")
    sandbox.faults.always(image.image_id, Fault(Kind.REDIRECT_TO, location=f"{inside}/enhanced/1"))
    # The sandbox has literal addresses, which the policy allows here; names are checked by the resolver.
    async with open_fetcher(UrlPolicy(URL(sandbox.api_origin), allow_private=True), key=sandbox.api_key) as fetcher:
        url = URL(f"{sandbox.api_base}/images/{image.image_id}/enhanced?preview=true")
        with pytest.raises(AttemptFailed) as caught:
            async with fetcher.get(url, {}):
                pass
    assert caught.value.failure.reason is Reason.REDIRECT_REFUSED
    assert caught.value.failure.detail == "localhost has an address that is not public"
