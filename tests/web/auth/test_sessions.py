"""``/session``: sign-in, cookie and CSRF protection."""

from typing import Any

import aiohttp
import pytest

from service.sandbox import DEMO_ORDER_ID
from tests.archives import images_url
from tests.conftest import StartService
from tests.web.auth.conftest import ADMIN, LOCKED, NEW, PAYING, status_and_type


@pytest.mark.parametrize(("key", "role"), [(NEW, "download"), (PAYING, "full"), (ADMIN, "admin")])
@pytest.mark.parametrize("form", ["json", "data"])
async def test_session_has_the_role_of_its_key(key: str, role: str, form: str, locked: str) -> None:
    """Who signs in may do what its key may, until it signs out; the cookie is out of reach for scripts."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        async with browser.get(f"{locked}/session") as response:
            assert await response.json() == {
                "role": None, "key_required": True, "admin_enabled": True, "links_enabled": True, "signed_in": False,
            }  # fmt: skip
            assert not response.cookies, "a GET creates no session"
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
        pytest.param(b"[1]", 400, id="not an object"),
        pytest.param(b"{", 400, id="not JSON"),
        pytest.param(b"[" * 60_000, 400, id="too deep"),
        pytest.param(b'{"key": ["a", "b"]}', 400, id="two"),
        pytest.param(b" " * 5000, 400, id="too large"),
    ],
)
async def test_failed_sign_in_sets_no_cookie(
    body: bytes, status: int, locked: str, client: aiohttp.ClientSession
) -> None:
    """A wrong key is a 401, a body without one a 400; neither sets a cookie."""
    headers = {"Content-Type": "application/json"}
    async with client.post(f"{locked}/session", data=body, headers=headers) as response:
        assert response.status == status
        assert not response.cookies


async def test_cookie_is_secure_behind_https(start_service: StartService, client: aiohttp.ClientSession) -> None:
    """If clients use https, the cookie is ``Secure``."""
    for settings, headers, secure in (
        ({"public_url": "https://zip.example.com"}, {}, True),
        ({"trusted_proxy_hops": 1}, {"X-Forwarded-Proto": "https"}, True),
        ({}, {"X-Forwarded-Proto": "https"}, ""),
    ):
        service = await start_service(**LOCKED, **settings)
        async with client.post(f"{service}/session", json={"key": NEW}, headers=headers) as response:
            assert response.cookies["batch_session"]["secure"] == secure


async def test_cross_site_request_cannot_use_the_session(locked: str, client: aiohttp.ClientSession) -> None:
    """Unsafe methods accept the cookie only from our own page (CSRF)."""
    async with client.post(f"{locked}/session", json={"key": NEW}) as response:
        cookie = response.cookies["batch_session"].value
    url = f"{locked}/orders/{DEMO_ORDER_ID}/links"
    for site, status in (("same-origin", 201), ("cross-site", 401), ("same-site", 401)):
        headers = {"Cookie": f"batch_session={cookie}", "Sec-Fetch-Site": site}
        async with client.post(url, json={}, headers=headers) as response:
            assert response.status == status


async def test_cross_site_form_cannot_sign_in(locked: str, client: aiohttp.ClientSession) -> None:
    """A form on another site cannot sign a browser in to a session of its own (login CSRF)."""
    for site, status in (("cross-site", 401), ("same-site", 401), ("none", 200)):
        headers = {"Sec-Fetch-Site": site}
        async with client.post(f"{locked}/session", data={"key": NEW}, headers=headers) as response:
            assert (response.status, bool(response.cookies)) == (status, status == 200)
