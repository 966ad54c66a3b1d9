"""The commands ``order …``: a process against a running service, its output and its exit code."""

import asyncio
import json
import os
import secrets
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO

import aiohttp
import pytest
from pydantic import SecretStr

from service.cli.order import ServiceTarget, save_archive
from service.cli.verify import verify_archive
from service.monitoring.logs import configure_logs
from service.sandbox import DEMO_ORDER_ID, PARTIAL_ORDER_ID, Fault, Kind, Sandbox, SandboxImage
from tests.archives import add_order, jpeg
from tests.cli.commands import run_order
from tests.conftest import StartService


async def test_show_lists_images_with_their_state(service: str, tmp_path: Path) -> None:
    """Each image is a line with its entry name and what is wrong with it; the last line sums up."""
    done = await run_order("--service", service, "show", PARTIAL_ORDER_ID, cwd=tmp_path)
    assert done.code == 0, done.err
    lines = done.out.decode().splitlines()
    assert len(lines) == 8
    assert "3 of 7 images ready" in lines[-1]
    done = await run_order("show", PARTIAL_ORDER_ID, "--json", cwd=tmp_path, BATCH_SERVICE_URL=service)
    assert json.loads(done.out)["counts"]["ready"] == 3


async def test_download_saves_a_complete_archive(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """Every image arrives as it was served; an existing file is overwritten with --force only."""
    order = add_order(sandbox, [100_000, 2000, 300])
    done = await run_order("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    assert (done.code, done.out) == (0, b""), done.err
    assert os.listdir(tmp_path) == ["a.zip"]  # noqa: PTH208
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert [archive.read(f"{n}.jpg") for n in range(3)] == [jpeg(100_000, 0), jpeg(2000, 1), jpeg(300, 2)]
    repeated = await run_order("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    assert repeated.code == 2
    assert "--force" in repeated.err
    forced = await run_order("--service", service, "download", order.order_id, "-o", "a.zip", "--force", cwd=tmp_path)
    assert forced.code == 0


async def test_download_to_a_pipe_writes_only_the_archive(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """Standard output gets the archive and nothing else, standard error nothing at all."""
    order = add_order(sandbox, [1000])
    done = await run_order("--service", service, "download", order.order_id, "-o", "-", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    (tmp_path / "piped.zip").write_bytes(done.out)
    assert verify_archive(tmp_path / "piped.zip").images == ["0.jpg"]


async def test_options_become_parameters(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """Each option becomes the parameter of its name; options that are not given are not sent."""
    options = ["--format", "png", "--quality", "80", "--dev-mode", "--no-watermark", "--max-width", "300"]
    done = await run_order("--service", service, "download", DEMO_ORDER_ID, "-o", "-", *options, cwd=tmp_path)
    assert done.code == 0, done.err
    request = next(one for one in sandbox.requests if "enhanced" in one.path)
    assert dict(request.query) == {
        "preview": "true", "format": "png", "quality": "80", "max_width": "300", "watermark": "false",
    }  # fmt: skip
    assert {name.lower(): value for name, value in request.headers.items()}["x-dev-mode"] == "true"


async def test_missing_from_downloads_only_the_failed_images(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """Failed images are listed and make the exit code 1; a second run downloads exactly those."""
    order = add_order(sandbox, [1000, 2000, 3000])
    sandbox.faults.always(order.images[1].image_id, Fault(Kind.STATUS, status=404), origin="api")
    done = await run_order("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    assert done.code == 1
    assert "missing: 1.jpg" in done.err
    sandbox.faults.clear()
    arguments = ["--service", service, "download", order.order_id, "--missing-from", "a.zip", "-o", "rest.zip"]
    done = await run_order(*arguments, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "a.zip lacks 1 images" in done.err
    assert verify_archive(tmp_path / "rest.zip").images == ["1.jpg"]
    done = await run_order(*arguments[:4], "--missing-from", "rest.zip", "-o", "none.zip", cwd=tmp_path)
    assert (done.code, (tmp_path / "none.zip").exists()) == (0, False)
    assert "lacks nothing" in done.err
    other = await run_order(
        "--service", service, "download", DEMO_ORDER_ID, "--missing-from", "a.zip", "-o", "x.zip", cwd=tmp_path
    )
    assert other.code == 2


async def test_missing_from_reports_images_removed_since(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """An image that was removed from the order since is listed as failed; the others are downloaded."""
    order = add_order(sandbox, [1000, 2000, 3000])
    gone, found = order.images[1:]
    for lost in (gone, found):
        sandbox.faults.always(lost.image_id, Fault(Kind.STATUS, status=404), origin="api")
    await run_order("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    sandbox.faults.clear()
    sandbox.remove_image(gone.image_id)
    arguments = ["--service", service, "download", order.order_id, "--missing-from", "a.zip", "-o", "rest.zip"]
    done = await run_order(*arguments, cwd=tmp_path)
    assert (done.code, verify_archive(tmp_path / "rest.zip").images) == (1, ["2.jpg"])
    assert "removed from the order" in done.err


async def test_missing_from_rejects_an_unrelated_archive(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """A ZIP without a manifest and without an image of the order does not count as a complete archive of it."""
    order = add_order(sandbox, [1000])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("letter.txt", "no photo")
    done = await run_order(
        "--service", service, "download", order.order_id, "--missing-from", "other.zip", "-o", "a.zip", cwd=tmp_path
    )
    assert done.code == 2
    assert "has no image of the order" in done.err


async def test_output_escapes_control_characters(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """Names and reasons from the upstream are printed without control characters, so they cannot drive the terminal."""
    image = SandboxImage("a\x1b]0;b\x07.jpg", status="error", status_reason="\x1b]0;c\x07 broken \u202egpj")
    order = sandbox.add_order(
        [image, SandboxImage("d.jpg", body=jpeg(100), content_type="image/jpeg")], "e\x1b]0;f\x07"
    )
    shown = await run_order("--service", service, "show", order.order_id, cwd=tmp_path)
    downloaded = await run_order("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    assert (shown.code, downloaded.code) == (0, 1), shown.err + downloaded.err
    for text in (shown.out.decode(), downloaded.err):
        assert "broken" in text
        assert not set(text) & {"\x1b", "\x07", "\u202e"}


async def test_wait_includes_images_that_become_ready(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """--wait includes images that were not ready; without it, an order without ready images is rejected."""
    image = SandboxImage("0.jpg", body=jpeg(1000), content_type="image/jpeg", ready_after_polls=2)
    order = sandbox.add_order([image])
    refused = await run_order("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    assert refused.code == 3
    done = await run_order(
        "--service", service, "download", order.order_id, "-o", "a.zip", "--wait", "60", cwd=tmp_path
    )
    assert done.code == 0, done.err
    assert verify_archive(tmp_path / "a.zip").images == ["0.jpg"]


async def test_missing_from_rejects_a_truncated_archive(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """A truncated archive is rejected, with the advice to download the whole order again."""
    order = add_order(sandbox, [1000])
    await run_order("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    cut = tmp_path / "cut.zip"
    cut.write_bytes((tmp_path / "a.zip").read_bytes()[:500])
    done = await run_order(
        "--service", service, "download", order.order_id, "--missing-from", cut, "-o", "b.zip", cwd=tmp_path
    )
    assert done.code == 1
    assert "Download the whole order again" in done.err
    assert not (tmp_path / "b.zip").exists()


async def test_aborted_download_leaves_no_file(sandbox: Sandbox, start_service: StartService, tmp_path: Path) -> None:
    """When the service aborts the archive, neither the file nor its temporary file is left."""
    service = await start_service(image_attempts=1)
    order = add_order(sandbox, [100_000, 2000])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=70_000)
    sandbox.faults.always(order.images[1].image_id, Fault(Kind.RESET))
    running = asyncio.create_task(
        run_order("--service", service, "download", order.order_id, "-o", "a.zip", "--on-error", "abort", cwd=tmp_path)
    )
    await sandbox.wait_until(lambda: sum(sandbox.faults.injected.values()) == 2)
    gate.release()
    done = await running
    assert (done.code, os.listdir(tmp_path)) == (3, [])  # noqa: PTH208


async def test_download_does_not_follow_or_replace_symlinks(
    sandbox: Sandbox, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary file is created exclusively: a symlink of its name is neither followed nor removed."""
    order = add_order(sandbox, [1000])
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    beside = [tmp_path / "a.zip.part", tmp_path / "a.zip.0123.part"]
    for trap in beside:
        trap.symlink_to(victim)
    done = await run_order("--service", service, "download", order.order_id, "-o", "a.zip", cwd=tmp_path)
    assert done.code == 0, done.err
    assert stat.S_IMODE((tmp_path / "a.zip").stat().st_mode) == stat.S_IMODE(victim.stat().st_mode), "umask"

    async def overwrite(sink: BinaryIO) -> int:
        return sink.write(b"overwritten")

    monkeypatch.setattr(secrets, "token_hex", lambda _: "0123")
    with pytest.raises(FileExistsError):
        await save_archive(overwrite, str(tmp_path / "a.zip"), force=True)
    assert (victim.read_bytes(), all(trap.is_symlink() for trap in beside)) == (b"precious", True)
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "a.zip.0123.part", "a.zip.part", "victim"]  # noqa: PTH208


@pytest.mark.parametrize(
    ("order_id", "words"),
    [
        ("not-a-uuid", "The order id is not a UUID"),
        ("00000000-0000-4000-8000-000000000000", "The order does not exist"),
    ],
)
async def test_problems_are_printed(order_id: str, words: str, service: str, tmp_path: Path) -> None:
    """Title and detail of a problem are printed; the exit code is 3."""
    done = await run_order("--service", service, "download", order_id, "-o", "a.zip", cwd=tmp_path)
    assert (done.code, os.listdir(tmp_path)) == (3, [])  # noqa: PTH208
    assert words in done.err


async def test_unreachable_service_is_reported(closed_port: int, tmp_path: Path) -> None:
    """An unreachable service is an error message, without a traceback."""
    done = await run_order("--service", f"http://127.0.0.1:{closed_port}", "show", DEMO_ORDER_ID, cwd=tmp_path)
    assert done.code == 3
    assert "no response from" in done.err
    assert "Traceback" not in done.err


async def test_key_is_read_from_the_environment(start_service: StartService, tmp_path: Path) -> None:
    """The API key is read from the environment, and never printed."""
    service = await start_service(service_api_keys=(SecretStr("a-key-for-clients"),))
    arguments = ["--service", service, "download", DEMO_ORDER_ID, "-o", "a.zip"]
    refused = await run_order(*arguments, cwd=tmp_path)
    assert refused.code == 3
    assert "An API key is required" in refused.err
    done = await run_order(*arguments, cwd=tmp_path, BATCH_SERVICE_KEY="a-key-for-clients")
    assert done.code == 0, done.err
    assert "a-key-for-clients" not in done.err


async def test_full_quality_needs_confirmation(sandbox: Sandbox, service: str, tmp_path: Path) -> None:
    """Without a terminal nothing is bought without --yes, nor above --max-credits."""
    order = add_order(sandbox, [1000, 2000])
    arguments = ["--service", service, "download", order.order_id, "-o", "a.zip", "--full"]
    unconfirmed = await run_order(*arguments, cwd=tmp_path)
    assert unconfirmed.code == 2
    assert "2 credits" in unconfirmed.err
    bounded = await run_order(*arguments, "--yes", "--max-credits", "1", cwd=tmp_path)
    assert bounded.code == 1
    assert sandbox.credits_spent == 0
    done = await run_order(*arguments, "--yes", "--max-credits", "2", cwd=tmp_path)
    assert done.code == 0, done.err
    assert sandbox.credits_spent == 2


async def test_create_uploads_photos(sandbox: Sandbox, start_service: StartService, tmp_path: Path) -> None:
    """The id of the new order is printed; files that were not uploaded are listed and make the exit code 1."""
    service = await start_service(admin_token=SecretStr("the-operators-token"))
    (tmp_path / "a.jpg").write_bytes(jpeg(70_000, 1))
    (tmp_path / "b.txt").write_bytes(b"no photo")
    arguments = ["--service", service, "create", "a.jpg", "--name", "Two rooms", "--wait", "30"]
    done = await run_order(*arguments, cwd=tmp_path, ADMIN_TOKEN="the-operators-token")
    assert done.code == 0, done.err
    order = sandbox.orders[done.out.decode().strip()]
    assert order.name == "Two rooms"
    assert order.images[0].upload is not None
    assert order.images[0].upload.read_bytes() == jpeg(70_000, 1)
    done = await run_order(*arguments, "b.txt", cwd=tmp_path, ADMIN_TOKEN="the-operators-token")
    assert done.code == 1
    assert "b.txt: the first bytes" in done.err


async def test_direct_needs_no_running_service(sandbox: Sandbox, tmp_path: Path) -> None:
    """--direct needs only the settings of a service; invalid ones make the exit code 2."""
    environment = {
        "AUTOENHANCE_API_KEY": sandbox.api_key,
        "AUTOENHANCE_API_BASE": sandbox.api_base,
        "ALLOW_PRIVATE_UPSTREAM": "true",
    }
    done = await run_order("--direct", "download", DEMO_ORDER_ID, "-o", "a.zip", cwd=tmp_path, **environment)
    assert done.code == 0, done.err
    assert len(verify_archive(tmp_path / "a.zip").images) == 14
    (tmp_path / "a.jpg").write_bytes(jpeg(1000, 1))
    for credentials in ({}, {"ADMIN_TOKEN": "the-operators-token"}):
        created = await run_order("--direct", "create", "a.jpg", cwd=tmp_path, **environment, **credentials)
        assert created.code == 0, created.err
        assert len(sandbox.orders[created.out.decode().strip()].images) == 1
    wrong = await run_order("--direct", "show", DEMO_ORDER_ID, cwd=tmp_path, **environment, MAX_ARCHIVES="none")
    assert wrong.code == 2
    assert "MAX_ARCHIVES" in wrong.err


async def test_direct_rejects_other_clients(
    sandbox: Sandbox, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other users of the machine can reach the port of --direct, but get neither images nor credits."""
    monkeypatch.setenv("AUTOENHANCE_API_KEY", sandbox.api_key)
    monkeypatch.setenv("AUTOENHANCE_API_BASE", sandbox.api_base)
    monkeypatch.setenv("ALLOW_PRIVATE_UPSTREAM", "true")
    try:
        async with ServiceTarget("http://nowhere.invalid", None, None, direct=True).connect() as own_client:
            assert (await own_client.order(DEMO_ORDER_ID))["status"] == "ready"
            for method, path in (("GET", f"/orders/{DEMO_ORDER_ID}/images"), ("POST", "/api/create-sample-order")):
                async with client.request(method, own_client.url + path) as response:
                    assert response.status == 401
    finally:
        configure_logs(log_format="json", level="info")


@pytest.mark.parametrize("command", [(), ("show",), ("create",), ("download",)], ids=" ".join)
async def test_help_is_printed(command: tuple[str, ...], tmp_path: Path) -> None:
    """Each command has a help text."""
    done = await run_order(*command, "--help", cwd=tmp_path)
    assert done.code == 0
    assert b"Usage:" in done.out
