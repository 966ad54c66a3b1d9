"""Progress bars of ``order …`` on a terminal: what they show, and that they never fail a transfer."""

import re
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import SecretStr

from service.cli.verify import verify_archive
from service.sandbox import Fault, Kind, Sandbox
from tests.archives import add_order, jpeg
from tests.cli.commands import run_order_on_terminal
from tests.conftest import StartService

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a pseudo-terminal")


async def test_download_draws_finished_images(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """A bar shows the number of finished images, failed ones included, and the received bytes."""
    order = add_order(sandbox, [2_000_000, 1000, 1000])
    sandbox.faults.always(order.images[1].image_id, Fault(Kind.STATUS, status=404), origin="api")
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=1_000_000)
    result = await run_order_on_terminal(
        "--service", service, "download", order.order_id, "-o", "-",
        cwd=tmp_path, expected="| 1 of 3 images", then=gate.release,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.out.startswith(b"PK")
    assert "receiving:  33%|" in result.err
    last = result.err.rstrip().rsplit("\r", 1)[-1]
    assert re.fullmatch(r"receiving: 100%\|█+\| 3 of 3 images, 1\.9 MiB, \d+\.\d MiB/s", last)


async def test_create_draws_sent_bytes(start_service: StartService, tmp_path: Path) -> None:
    """A bar shows how many bytes of the photos are sent, and how many there are."""
    service = await start_service(admin_token=SecretStr("the-operators-token"))
    (tmp_path / "a.jpg").write_bytes(jpeg(3_000_000, 1))
    result = await run_order_on_terminal(
        "--service", service, "--admin-token", "the-operators-token", "create", "a.jpg", cwd=tmp_path
    )
    assert result.code == 0, result.err
    assert re.search(r"sending: 100%\|█+\| 2\.86M/2\.86M \[", result.err)


@pytest.mark.parametrize("columns", [10, 40])
async def test_lines_fit_narrow_terminals(columns: int, sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """Every drawing fits into one line of the terminal: a longer one would wrap, and scroll at each redraw."""
    order = add_order(sandbox, [2_000_000, 1000])
    result = await run_order_on_terminal(
        "--service", service, "download", order.order_id, "-o", "-", cwd=tmp_path, columns=columns
    )
    assert result.code == 0, result.err
    drawings = re.split(r"[\r\n]+", result.err)
    assert any(one.startswith("receiving"[:columns]) for one in drawings)
    assert max(map(len, drawings)) <= columns


async def test_download_survives_its_terminal(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """A terminal that hangs up ends the drawing, not the download."""
    order = add_order(sandbox, [2_000_000])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=1_000_000)
    result = await run_order_on_terminal(
        "--service", service, "download", order.order_id, "-o", "-",
        cwd=tmp_path, expected="receiving", then=gate.release, hang_up=True,
    )  # fmt: skip
    # 120: Python itself cannot flush standard error at its exit.
    assert result.code in {0, 120}
    (tmp_path / "a.zip").write_bytes(result.out)
    assert verify_archive(tmp_path / "a.zip").images == ["0.jpg"]


def fake_service(archive: bytes, *, events_status: int, id_in_use: bool = False) -> web.Application:
    """A service with one archive, whose events respond with ``events_status`` and without any counts."""

    async def images(request: web.Request) -> web.Response:
        if id_in_use and "archive_id" in request.query:
            return web.json_response({"type": "/problems/archive-id-in-use"}, status=409)
        return web.Response(body=archive, headers={"X-Total-Images": "1"})

    async def events(_: web.Request) -> web.Response:
        body = b"data: [1]\n\ndata: \xff\n\nevent: end\n\n" if events_status == 200 else b""
        return web.Response(status=events_status, body=body)

    app = web.Application()
    app.router.add_get("/orders/{order_id}/images", images)
    app.router.add_get("/archives/{archive_id}/events", events)
    return app


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param({"events_status": 404}, id="another replica"),
        pytest.param({"events_status": 401}, id="not allowed"),
        pytest.param({"events_status": 200}, id="no counts"),
        pytest.param({"events_status": 404, "id_in_use": True}, id="request repeated by a proxy"),
    ],
)
async def test_download_without_events_draws_bytes(
    behaviour: dict[str, Any], sandbox: Sandbox, service: str, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Without events the bytes are drawn alone, and the archive is complete."""
    order = add_order(sandbox, [2_000_000])
    async with client.get(f"{service}/orders/{order.order_id}/images") as response:
        archive = await response.read()
    async with TestServer(fake_service(archive, **behaviour)) as server:
        result = await run_order_on_terminal(
            "--service", str(server.make_url("")), "download", order.order_id, "-o", "a.zip", cwd=tmp_path
        )
    assert result.code == 0, result.err
    assert (tmp_path / "a.zip").read_bytes() == archive
    assert re.search(r"receiving, 1\.9 MiB, \d+\.\d MiB/s *\r?\n", result.err)
    assert "of 1 images" not in result.err
