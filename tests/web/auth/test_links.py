"""Links over HTTP: what they grant, and which requests for links are rejected."""

import asyncio
import uuid
from typing import Any

import aiohttp
import pytest
from yarl import URL

from service.sandbox import DEMO_ORDER_ID, PARTIAL_ORDER_ID, Sandbox
from tests.archives import download, images_url
from tests.conftest import StartService
from tests.web.auth.conftest import (
    NEW,
    PAYING,
    link_to,
    status_and_type,
)


async def test_link_grants_its_download(locked: str, client: aiohttp.ClientSession) -> None:
    """A link grants the download it was signed for, by GET and HEAD, without a key."""
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
async def test_link_grants_no_other_download(
    change: Any, slug: str, locked: str, client: aiohttp.ClientSession, sandbox: Sandbox
) -> None:
    """Any other request with its token is rejected before an upstream request."""
    link = await link_to(client, locked, NEW, parameters={"format": "png", "quality": "80"})
    _, found = await status_and_type(client, change(link))
    assert found == slug
    assert sandbox.requests == []


async def test_link_grants_receipts_of_its_downloads(locked: str, client: aiohttp.ClientSession) -> None:
    """A link grants receipts and events of the downloads made by it, and of no others."""
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
    """Return the body of a GET."""
    async with client.get(URL(url, encoded=True)) as response:
        return await response.read()


async def test_link_to_full_quality_requires_the_role(locked: str, client: aiohttp.ClientSession) -> None:
    """Only a client that may spend credits can create a link that does."""
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
async def test_invalid_link_request_is_rejected(body: bytes, locked: str, client: aiohttp.ClientSession) -> None:
    """An invalid link is rejected when it is created, not when it is used."""
    url = f"{locked}/orders/{DEMO_ORDER_ID}/links"
    async with client.post(url, data=body, headers={"X-API-Key": NEW}) as response:
        assert response.status == 400


async def test_links_require_signing_keys(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """Without SIGNING_KEYS no link can be created, and none is valid."""
    service = await start_service()
    async with client.post(f"{service}/orders/{DEMO_ORDER_ID}/links", json={}) as response:
        assert (response.status, (await response.json())["type"]) == (503, "/problems/links-not-configured")
    assert (await status_and_type(client, images_url(service, DEMO_ORDER_ID, "?link=x")))[1] == "link-invalid"


async def test_retry_urls_do_not_contain_the_link(locked: str, client: aiohttp.ClientSession) -> None:
    """The token does not cover a retry, so report and manifest do not contain it."""
    link = await link_to(client, locked, NEW, order=PARTIAL_ORDER_ID, parameters={"format": "png"})
    token = link.query["link"].encode()
    files = await download(client, link)
    assert all(token not in content for content in files.values())
    assert b"format=png" in files["_manifest.json"]
