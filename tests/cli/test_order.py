"""The commands ``order …`` as people run them: a process against a running service, its output and its exit code."""

import asyncio
import json
import os
import re
import secrets
import stat
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import SecretStr

from service.cli.order import _fetch, _Target
from service.cli.verify import ArchiveDamaged, verify
from service.monitoring.logs import configure_logs
from service.sandbox import DEMO_ORDER_ID, PARTIAL_ORDER_ID, Fault, Kind, Sandbox, SandboxImage
from tests.archives import add_order, jpeg
from tests.conftest import StartService

SHOW_CURSOR = "\x1b[?25h"
# A command at a terminal ends in a second or two, unless what is awaited on it never comes.
TERMINAL_SECONDS = 30
needs_a_terminal = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a pseudo-terminal")


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: bytes
    err: str


async def run(*arguments: str | Path, cwd: Path, **environment: str) -> Done:
    """Run ``python -m service order …`` without a terminal."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", "order", *map(str, arguments),
        cwd=cwd, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], **environment},
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out, err.decode())


async def test_show(service: str, tmp_path: Path) -> None:
    """An order's images are listed with their names and what is the matter with them."""
    done = await run("--service", service, "show", PARTIAL_ORDER_ID, cwd=tmp_path)
    assert done.code == 0, done.err
    lines = done.out.decode().splitlines()
    assert len(lines) == 8
    assert "3 of 7 images ready" in lines[-1]
    done = await run("show", PARTIAL_ORDER_ID, "--json", cwd=tmp_path, BATCH_SERVICE_URL=service)
    assert json.loads(done.out)["counts"]["ready"] == 3


async def test_download(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """Every image arrives as it was served, in a file that is there only when it is whole."""
    order = add_order(sandbox, [100_000, 2000, 300])
    done = await run("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    assert (done.code, done.out) == (0, b""), done.err
    assert os.listdir(tmp_path) == ["a.zip"]  # noqa: PTH208
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert [archive.read(f"{n}.jpg") for n in range(3)] == [jpeg(100_000, 0), jpeg(2000, 1), jpeg(300, 2)]
    again = await run("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    assert again.code == 2
    assert "--force" in again.err
    forced = await run("--service", service, "download", order.order_id, "-o", "a.zip", "--force", cwd=tmp_path)
    assert forced.code == 0


async def test_download_to_a_pipe(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """Standard output gets the archive and nothing else, standard error nothing at all."""
    order = add_order(sandbox, [1000])
    done = await run("--service", service, "download", order.order_id, "-o", "-", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    (tmp_path / "piped.zip").write_bytes(done.out)
    assert verify(tmp_path / "piped.zip").images == ["0.jpg"]


async def test_choices_are_passed_on(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """Each option becomes the parameter of its name; what is not given is not sent."""
    options = ["--format", "png", "--quality", "80", "--dev-mode", "--no-watermark", "--max-width", "300"]
    done = await run("--service", service, "download", DEMO_ORDER_ID, "-o", "-", *options, cwd=tmp_path)
    assert done.code == 0, done.err
    asked = next(one for one in sandbox.requests if "enhanced" in one.path)
    assert dict(asked.query) == {
        "preview": "true", "format": "png", "quality": "80", "max_width": "300", "watermark": "false",
    }  # fmt: skip
    assert {name.lower(): value for name, value in asked.headers.items()}["x-dev-mode"] == "true"


async def test_missing_images(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """What could not be had is named and makes the exit code 1; a second run fetches exactly that."""
    order = add_order(sandbox, [1000, 2000, 3000])
    sandbox.faults.always(order.images[1].image_id, Fault(Kind.STATUS, status=404), origin="api")
    done = await run("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    assert done.code == 1
    assert "missing: 1.jpg" in done.err
    sandbox.faults.clear()
    arguments = ["--service", service, "download", order.order_id, "--missing-from", "a.zip", "-o", "rest.zip"]
    done = await run(*arguments, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "a.zip lacks 1 images" in done.err
    assert verify(tmp_path / "rest.zip").images == ["1.jpg"]
    done = await run(*arguments[:4], "--missing-from", "rest.zip", "-o", "none.zip", cwd=tmp_path)
    assert (done.code, (tmp_path / "none.zip").exists()) == (0, False)
    assert "lacks nothing" in done.err
    other = await run(
        "--service", service, "download", DEMO_ORDER_ID, "--missing-from", "a.zip", "-o", "x.zip", cwd=tmp_path
    )
    assert other.code == 2


async def test_a_missing_image_that_is_no_more(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """One that was taken out of the order meanwhile is named, and does not keep the others back."""
    order = add_order(sandbox, [1000, 2000, 3000])
    gone, found = order.images[1:]
    for lost in (gone, found):
        sandbox.faults.always(lost.image_id, Fault(Kind.STATUS, status=404), origin="api")
    await run("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    sandbox.faults.clear()
    sandbox.remove_image(gone.image_id)
    arguments = ["--service", service, "download", order.order_id, "--missing-from", "a.zip", "-o", "rest.zip"]
    done = await run(*arguments, cwd=tmp_path)
    assert (done.code, verify(tmp_path / "rest.zip").images) == (1, ["2.jpg"])
    assert "removed from the order" in done.err


async def test_an_archive_of_something_else_lacks_everything(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """A ZIP without a manifest and without an image of the order is not taken for a complete archive of it."""
    order = add_order(sandbox, [1000])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("letter.txt", "no photo")
    done = await run(
        "--service", service, "download", order.order_id, "--missing-from", "other.zip", "-o", "a.zip", cwd=tmp_path
    )
    assert done.code == 2
    assert "has no image of the order" in done.err


async def test_names_do_not_command_the_terminal(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """Names and reasons that others wrote are shown without control characters, wherever they stand."""
    image = SandboxImage("a\x1b]0;b\x07.jpg", status="error", status_reason="\x1b]0;c\x07 broken \u202egpj")
    order = sandbox.add_order(
        [image, SandboxImage("d.jpg", body=jpeg(100), content_type="image/jpeg")], "e\x1b]0;f\x07"
    )
    shown = await run("--service", service, "show", order.order_id, cwd=tmp_path)
    taken = await run("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    assert (shown.code, taken.code) == (0, 1), shown.err + taken.err
    for text in (shown.out.decode(), taken.err):
        assert "broken" in text
        assert not set(text) & {"\x1b", "\x07", "\u202e"}


async def test_wait(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """--wait brings the images that were not ready; without it they are named as missing."""
    image = SandboxImage("0.jpg", body=jpeg(1000), content_type="image/jpeg", ready_after_polls=2)
    order = sandbox.add_order([image])
    refused = await run("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    assert refused.code == 3
    done = await run("--service", service, "download", order.order_id, "-o", "a.zip", "--wait", "60", cwd=tmp_path)
    assert done.code == 0, done.err
    assert verify(tmp_path / "a.zip").images == ["0.jpg"]


async def test_a_cut_archive_cannot_tell_what_it_lacks(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """An archive without its end is refused with the advice to download anew."""
    order = add_order(sandbox, [1000])
    await run("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    cut = tmp_path / "cut.zip"
    cut.write_bytes((tmp_path / "a.zip").read_bytes()[:500])
    done = await run(
        "--service", service, "download", order.order_id, "--missing-from", cut, "-o", "b.zip", cwd=tmp_path
    )
    assert done.code == 1
    assert "Download the whole order again" in done.err
    assert not (tmp_path / "b.zip").exists()


async def test_a_broken_transfer_leaves_nothing(sandbox: Sandbox, start_service: StartService, tmp_path: Path) -> None:
    """When the service breaks off, no file stands under the final name, nor beside it."""
    service = await start_service(image_attempts=1)
    order = add_order(sandbox, [100_000, 2000])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=70_000)
    sandbox.faults.always(order.images[1].image_id, Fault(Kind.RESET))
    running = asyncio.create_task(
        run("--service", service, "download", order.order_id, "-o", "a.zip", "--on-error", "abort", cwd=tmp_path)
    )
    await sandbox.wait_until(lambda: sum(sandbox.faults.injected.values()) == 2)
    gate.release()
    done = await running
    assert (done.code, os.listdir(tmp_path)) == (3, [])  # noqa: PTH208


async def test_what_lies_beside_is_not_touched(
    sandbox: Sandbox, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download is written into a new file: a symlink of its name is not followed, nor is it taken away."""
    order = add_order(sandbox, [1000])
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    beside = [tmp_path / "a.zip.part", tmp_path / "a.zip.0123.part"]
    for trap in beside:
        trap.symlink_to(victim)
    done = await run("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    assert done.code == 0, done.err
    assert stat.S_IMODE((tmp_path / "a.zip").stat().st_mode) == stat.S_IMODE(victim.stat().st_mode), "umask"

    async def nothing(sink: BinaryIO) -> int:
        return sink.write(b"overwritten")

    monkeypatch.setattr(secrets, "token_hex", lambda _: "0123")
    with pytest.raises(FileExistsError):
        await _fetch(nothing, str(tmp_path / "a.zip"), force=True)
    assert (victim.read_bytes(), all(trap.is_symlink() for trap in beside)) == (b"precious", True)
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "a.zip.0123.part", "a.zip.part", "victim"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("order_id", "words"),
    [
        ("not-a-uuid", "The order id is not a UUID"),
        ("00000000-0000-4000-8000-000000000000", "The order does not exist"),
    ],
)
async def test_refusals_are_told(order_id: str, words: str, service: str, tmp_path: Path) -> None:
    """A problem's title and detail are shown; the exit code is 3."""
    done = await run("--service", service, "download", order_id, "-o", "a.zip", cwd=tmp_path)
    assert (done.code, os.listdir(tmp_path)) == (3, [])  # noqa: PTH208
    assert words in done.err


async def test_no_service(closed_port: int, tmp_path: Path) -> None:
    """Where nobody answers, that is said, without a traceback."""
    done = await run("--service", f"http://127.0.0.1:{closed_port}", "show", DEMO_ORDER_ID, cwd=tmp_path)
    assert done.code == 3
    assert "no answer from" in done.err
    assert "Traceback" not in done.err


async def test_keys(start_service: StartService, tmp_path: Path) -> None:
    """A key is taken from the environment, and never shown."""
    service = await start_service(service_api_keys=(SecretStr("a-key-for-callers"),))
    arguments = ["--service", service, "download", DEMO_ORDER_ID, "-o", "a.zip"]
    refused = await run(*arguments, cwd=tmp_path)
    assert refused.code == 3
    assert "A key of the service is needed" in refused.err
    done = await run(*arguments, cwd=tmp_path, BATCH_SERVICE_KEY="a-key-for-callers")
    assert done.code == 0, done.err
    assert "a-key-for-callers" not in done.err


async def test_full_quality_is_agreed_to(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """Without --yes nothing is bought where nobody can be asked; a bound on credits is kept; then it is done."""
    order = add_order(sandbox, [1000, 2000])
    arguments = ["--service", service, "download", order.order_id, "-o", "a.zip", "--full"]
    unasked = await run(*arguments, cwd=tmp_path)
    assert unasked.code == 2
    assert "2 credits" in unasked.err
    bounded = await run(*arguments, "--yes", "--max-credits", "1", cwd=tmp_path)
    assert bounded.code == 1
    assert sandbox.credits_spent == 0
    done = await run(*arguments, "--yes", "--max-credits", "2", cwd=tmp_path)
    assert done.code == 0, done.err
    assert sandbox.credits_spent == 2


async def test_create(sandbox: Sandbox, start_service: StartService, tmp_path: Path) -> None:
    """Photos go in, the order's id comes out; what was not taken is named and makes the exit code 1."""
    service = await start_service(admin_token=SecretStr("the-operators-token"))
    (tmp_path / "a.jpg").write_bytes(jpeg(70_000, 1))
    (tmp_path / "b.txt").write_bytes(b"no photo")
    arguments = ["--service", service, "create", "a.jpg", "--name", "Two rooms", "--wait", "30"]
    done = await run(*arguments, cwd=tmp_path, ADMIN_TOKEN="the-operators-token")
    assert done.code == 0, done.err
    order = sandbox.orders[done.out.decode().strip()]
    assert order.name == "Two rooms"
    assert order.images[0].upload is not None
    assert order.images[0].upload.read_bytes() == jpeg(70_000, 1)
    done = await run(*arguments, "b.txt", cwd=tmp_path, ADMIN_TOKEN="the-operators-token")
    assert done.code == 1
    assert "b.txt: the first bytes" in done.err


async def test_direct(sandbox: Sandbox, tmp_path: Path) -> None:
    """--direct needs no running service, only the settings of one; wrong ones are exit code 2."""
    environment = {
        "AUTOENHANCE_API_KEY": sandbox.api_key,
        "AUTOENHANCE_API_BASE": sandbox.api_base,
        "ALLOW_PRIVATE_UPSTREAM": "true",
    }
    done = await run("--direct", "download", DEMO_ORDER_ID, "-o", "a.zip", cwd=tmp_path, **environment)
    assert done.code == 0, done.err
    assert len(verify(tmp_path / "a.zip").images) == 14
    (tmp_path / "a.jpg").write_bytes(jpeg(1000, 1))
    for operator in ({}, {"ADMIN_TOKEN": "the-operators-token"}):
        created = await run("--direct", "create", "a.jpg", cwd=tmp_path, **environment, **operator)
        assert created.code == 0, created.err
        assert len(sandbox.orders[created.out.decode().strip()].images) == 1
    wrong = await run("--direct", "show", DEMO_ORDER_ID, cwd=tmp_path, **environment, MAX_ARCHIVES="none")
    assert wrong.code == 2
    assert "MAX_ARCHIVES" in wrong.err


async def test_direct_opens_to_nobody_else(
    sandbox: Sandbox, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While --direct works, others on the machine reach its port, but neither images nor credits."""
    monkeypatch.setenv("AUTOENHANCE_API_KEY", sandbox.api_key)
    monkeypatch.setenv("AUTOENHANCE_API_BASE", sandbox.api_base)
    monkeypatch.setenv("ALLOW_PRIVATE_UPSTREAM", "true")
    try:
        async with _Target("http://nowhere.invalid", None, None, direct=True).opened() as ours:
            assert (await ours.order(DEMO_ORDER_ID))["status"] == "ready"
            for method, path in (("GET", f"/orders/{DEMO_ORDER_ID}/images"), ("POST", "/api/create-sample-order")):
                async with client.request(method, ours._url + path) as response:
                    assert response.status == 401
    finally:
        configure_logs(log_format="json", level="info")


async def on_a_terminal(
    *arguments: str | Path, cwd: Path, awaited: str = "", then: Callable[[], None] = lambda: None
) -> Done:
    """Run ``order`` with a terminal as its standard error, and return what was shown on it as ``err``.

    ``then`` is called when ``awaited`` is shown.
    """
    leader, follower = os.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service", "order", *map(str, arguments),
        cwd=cwd, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=follower,
        env={"PATH": os.environ["PATH"], "COLUMNS": "100"},
    )  # fmt: skip
    os.close(follower)
    called = partial(asyncio.get_running_loop().call_soon_threadsafe, then)
    shown = asyncio.create_task(asyncio.to_thread(_read_terminal, leader, awaited, called))
    try:
        async with asyncio.timeout(TERMINAL_SECONDS):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        pytest.fail(f"it did not end; {await shown!r}")
    assert process.returncode is not None
    return Done(process.returncode, out, await shown)


def _read_terminal(leader: int, awaited: str, called: Callable[[], object]) -> str:
    shown = b""
    with os.fdopen(leader, "rb", buffering=0) as terminal, suppress(OSError):  # EIO is its end
        while chunk := terminal.read(65536):
            before, shown = shown, shown + chunk
            if awaited.encode() in shown and awaited.encode() not in before:
                called()
    return shown.decode()


@needs_a_terminal
async def test_download_shows_its_images(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """On a terminal a bar shows how many images are done, those that failed too, with the bytes beside it."""
    order = add_order(sandbox, [2_000_000, 1000, 1000])
    sandbox.faults.always(order.images[1].image_id, Fault(Kind.STATUS, status=404), origin="api")
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=1_000_000)
    done = await on_a_terminal(
        "--service", service, "download", order.order_id, "-o", "-",
        cwd=tmp_path, awaited=" 33%  1 of 3 images, ", then=gate.release,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.out.startswith(b"PK")
    assert re.search(
        r"receiving \[#+\] 100%  3 of 3 images, 1\.9 MiB, \d+\.\d MiB/s *" + re.escape(SHOW_CURSOR), done.err
    )


@needs_a_terminal
async def test_create_shows_its_bytes(start_service: StartService, tmp_path: Path) -> None:
    """On a terminal a bar shows how many bytes of the photos are sent, of how many."""
    service = await start_service(admin_token=SecretStr("the-operators-token"))
    (tmp_path / "a.jpg").write_bytes(jpeg(3_000_000, 1))
    done = await on_a_terminal(
        "--service", service, "--admin-token", "the-operators-token", "create", "a.jpg", cwd=tmp_path
    )
    assert done.code == 0, done.err
    assert re.search(r"sending \[#+\] 100%  2\.9 of 2\.9 MiB, \d+\.\d MiB/s", done.err)


def strange_service(archive: bytes, *, events: int, id_taken: bool = False) -> web.Application:
    """A service that has an archive, but whose receipts cannot be had: ``events`` is how it answers."""

    async def images(request: web.Request) -> web.Response:
        if id_taken and "archive_id" in request.query:
            return web.json_response({"type": "/problems/archive-id-in-use"}, status=409)
        return web.Response(body=archive, headers={"X-Total-Images": "1"})

    async def no_events(_: web.Request) -> web.Response:
        return web.Response(status=events, body=b"data: [1]\n\ndata: \xff\n\nevent: end\n\n" if events == 200 else b"")

    app = web.Application()
    app.router.add_get("/orders/{order_id}/images", images)
    app.router.add_get("/archives/{archive_id}/events", no_events)
    return app


@needs_a_terminal
@pytest.mark.parametrize(
    "strange",
    [
        pytest.param({"events": 404}, id="another replica"),
        pytest.param({"events": 401}, id="not allowed"),
        pytest.param({"events": 200}, id="no events"),
        pytest.param({"events": 404, "id_taken": True}, id="asked for twice by a proxy"),
    ],
)
async def test_without_a_receipt_bytes_are_shown(
    strange: dict[str, Any], sandbox: Sandbox, service: str, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Where nobody can say which images are done, the bytes are shown alone, and the download is as good as any."""
    order = add_order(sandbox, [2_000_000])
    async with client.get(f"{service}/orders/{order.order_id}/images") as response:
        archive = await response.read()
    async with TestServer(strange_service(archive, **strange)) as server:
        done = await on_a_terminal(
            "--service", str(server.make_url("")), "download", order.order_id, "-o", "a.zip", cwd=tmp_path
        )
    assert done.code == 0, done.err
    assert (tmp_path / "a.zip").read_bytes() == archive
    assert re.search(r"receiving 1\.9 MiB, \d+\.\d MiB/s *" + re.escape(SHOW_CURSOR), done.err)
    assert "images," not in done.err.split(SHOW_CURSOR)[0]


@pytest.mark.parametrize("command", [(), ("show",), ("create",), ("download",)], ids=" ".join)
async def test_help(command: tuple[str, ...], tmp_path: Path) -> None:
    """Each command explains itself."""
    done = await run(*command, "--help", cwd=tmp_path)
    assert done.code == 0
    assert b"Usage:" in done.out


@pytest.mark.parametrize("place", [100, 1500])
async def test_damage_is_found(
    place: int, sandbox: Sandbox, service: str, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """One wrong bit anywhere in an image makes an archive unsound."""
    order = add_order(sandbox, [1000, 2000])
    async with client.get(f"{service}/orders/{order.order_id}/images?layout=stored&manifest=always") as response:
        archive = bytearray(await response.read())
    (tmp_path / "a.zip").write_bytes(archive)
    assert len(verify(tmp_path / "a.zip").images) == 2
    archive[place] ^= 1
    (tmp_path / "a.zip").write_bytes(archive)
    with pytest.raises(ArchiveDamaged):
        verify(tmp_path / "a.zip")
