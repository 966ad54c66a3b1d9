"""The commands ``order show``, ``order create`` and ``order download``.

Exit codes: 0 complete; 1 some images failed or are missing, and the rest was kept; 2 wrong usage or settings; 3 the
request was rejected or the transfer was aborted, and nothing was kept.
"""

import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click
from pydantic import SecretStr

from service.archive.naming import visible
from service.cli.progress import DownloadProgress, upload_progress
from service.cli.service_client import ProblemResponse, Query, ServiceClient, TransferError
from service.cli.verify import ArchiveDamaged, VerifiedArchive, verify_archive
from service.errors import ArchiveIdInUse, SettingsError
from service.monitoring.logs import configure_logs
from service.server.run import serving
from service.settings import load_settings

EXIT_INCOMPLETE, EXIT_USAGE, EXIT_BROKEN = 1, 2, 3
POLL_SECONDS = 3.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ServiceTarget:
    """The service that a command uses, and the credentials for it."""

    url: str
    key: str | None
    admin_token: str | None
    direct: bool

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[ServiceClient]:
        """Yield a client of the service; ``direct`` starts the service in this process first."""
        if not self.direct:
            async with ServiceClient(self.url, key=self.key, admin_token=self.admin_token) as service:
                yield service
            return
        settings = load_settings(host="127.0.0.1", port=0, metrics_port=None, log_level="error")
        configure_logs(log_format="console", level="error", secrets=settings.secrets(), stream=sys.stderr)
        # The user of this process has the API key already. Other users of the machine can reach the loopback port too,
        # so it requires a key and an admin token that exist only as long as this process.
        key, token = secrets.token_urlsafe(), secrets.token_urlsafe()
        overrides = {
            "service_api_keys": (SecretStr(key),),
            "service_api_key": None,
            "admin_token": SecretStr(token),
            "allow_full_quality": False,
        }
        async with (
            serving(settings.model_copy(update=overrides)) as url,
            ServiceClient(url, key=key, admin_token=token) as service,
        ):
            yield service


@click.group("order")
@click.option("--service", "url", envvar="BATCH_SERVICE_URL", default="http://localhost:8000", show_default=True,
              help="Address of the service (BATCH_SERVICE_URL).")  # fmt: skip
@click.option("--api-key", envvar="BATCH_SERVICE_KEY", help="API key of the service (BATCH_SERVICE_KEY).")
@click.option("--admin-token", envvar="ADMIN_TOKEN", help="Admin token, needed to create orders (ADMIN_TOKEN).")
@click.option("--direct", is_flag=True, help="Start the service in this process, with the settings of its environment.")
@click.pass_context
def order(context: click.Context, url: str, api_key: str | None, admin_token: str | None, *, direct: bool) -> None:
    """Show an order, create one, or download its images.

    Exit codes: 0 complete, 1 some images failed or are missing, 2 wrong usage, 3 rejected or aborted.
    """
    context.obj = ServiceTarget(url, api_key, admin_token, direct)


@order.command("show")
@click.argument("order_id")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON of the response.")
@click.pass_obj
def show(target: ServiceTarget, order_id: str, *, as_json: bool) -> None:
    """List the images of the order ORDER_ID, which of them are ready, and the price of full quality."""

    async def fetch_order() -> dict[str, Any]:
        async with target.connect() as service:
            return await service.order(order_id)

    summary = _run(fetch_order())
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    for image in summary["images"]:
        detail = f"  ({image['detail']})" if image["detail"] else ""
        paid = "  paid" if image["paid"] else ""
        _print(f"{image['readiness']:<10}  {image['entry']}{paid}{detail}")
    counts, credits_ = summary["counts"], summary["credits"]
    _print(
        f"{summary['name'] or '(no name)'}: {summary['status']}, {counts['ready']} of {counts['total']} images ready; "
        f"full quality would cost {credits_['full_quality']} credits"
    )


@order.command("create")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", default="", help="Name of the order, and of its archive.")
@click.option("--wait", type=click.IntRange(0), default=0, help="Seconds to wait for the photos to be enhanced.")
@click.pass_obj
def create(target: ServiceTarget, files: tuple[Path, ...], name: str, wait: int) -> None:
    """Upload photos as a new order, and print its id. Needs the admin token."""
    total_bytes = sum(file.stat().st_size for file in files)

    async def upload() -> dict[str, Any]:
        async with target.connect() as service:
            with upload_progress(total_bytes) as add_bytes:
                created = await service.create_order(files, {"name": name} if name else {}, add_bytes)
            await _wait_until_enhanced(service, created["order_id"], wait)
            return created

    created = _run(upload())
    for image in created["images"]:
        if image["outcome"] == "failed":
            _print(f"{image['file']}: {image['detail']} ({image['reason']})", err=True)
    _print(created["order_id"])
    if created["failed"]:
        sys.exit(EXIT_INCOMPLETE)


async def _wait_until_enhanced(service: ServiceClient, order_id: str, wait_seconds: float) -> None:
    end = time.monotonic() + wait_seconds
    while time.monotonic() < end and (await service.order(order_id))["counts"]["not_ready"]:  # noqa: ASYNC110 - remote
        await asyncio.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))


@order.command("download")
@click.argument("order_id")
@click.option("-o", "--output", required=True, help="File of the archive, or - for standard output.")
@click.option("--full/--preview", help="Full quality, which spends credits, or free previews (default).")
@click.option("--yes", is_flag=True, help="Spend credits without confirmation.")
@click.option("--max-credits", type=click.IntRange(0), help="Do not start if more images than this must be bought.")
@click.option("--format", "format_", help="jpeg, png, webp, avif or jxl.")
@click.option("--quality", type=int, help="1 to 90.")
@click.option("--dev-mode/--no-dev-mode", default=None, help="Watermarked test images; never spends credits.")
@click.option("--max-width", type=int, help="Maximum width in pixels.")
@click.option("--scale", help="Scale factor, above 0 and up to 1.")
@click.option("--watermark/--no-watermark", default=None, help="With or without a watermark.")
@click.option("--finetune/--no-finetune", default=None, help="Passed to the API.")
@click.option("--layout", help="streamable or stored.")
@click.option("--on-error", help="report (default): continue and list the failed images; abort: all or nothing.")
@click.option("--manifest", help="auto (default) or always.")
@click.option("--wait", type=click.IntRange(0), default=0, help="Seconds to wait for images that are not ready yet.")
@click.option("--only", multiple=True, help="Id of an image to download; may be repeated.")
@click.option("--missing-from", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Download only the images that this earlier archive of the order lacks.")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.pass_obj
def download(
    target: ServiceTarget,
    /,
    order_id: str,
    output: str,
    *,
    full: bool,
    yes: bool,
    max_credits: int | None,
    missing_from: Path | None,
    force: bool,
    wait: int,
    only: tuple[str, ...],
    **choices: Any,
) -> None:
    """Download the images of the order ORDER_ID as one ZIP archive, and check every byte of it.

    The archive gets its final name once it is complete and verified. On standard output, only the clean end of the
    transfer is checked.
    """
    query = [*_build_query(choices), *([("preview", "false")] if full else [])]
    earlier = _read_earlier_archive(missing_from, order_id) if missing_from is not None else None

    async def fetch() -> bool:
        missing = [record["image_id"] for record in earlier.failed if record["image_id"]] if earlier else []
        async with target.connect() as service:
            if earlier is not None:
                if earlier.manifest is None and not _has_images_of(earlier, await service.order(order_id)):
                    raise click.UsageError(f"{missing_from} has no image of the order {order_id}")
                _print(f"{missing_from} lacks {f'{len(missing)} images' if missing else 'nothing'}.", err=True)
                if not missing:
                    return True
            parameters = query
            if full:
                price = await _confirm_price(
                    service, order_id, query, missing or only, yes=yes, max_credits=max_credits
                )
                # The confirmed price limits the request too: the order may have changed since.
                parameters = [*query, ("max_credits", str(max_credits if max_credits is not None else price))]
            download_into = partial(
                _download_with_progress, service, order_id, parameters, only=only, missing=missing, wait_seconds=wait
            )
            return await save_archive(download_into, output, force=force)

    if not _run(fetch()):
        sys.exit(EXIT_INCOMPLETE)


def _build_query(choices: Mapping[str, Any]) -> list[tuple[str, str]]:
    given = [(name.rstrip("_"), value) for name, value in choices.items() if value is not None]
    return [(name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in given]


def _read_earlier_archive(path: Path, order_id: str) -> VerifiedArchive:
    """Verify an earlier archive of the order; its manifest lists the missing images."""
    try:
        archive = verify_archive(path)
    except ArchiveDamaged as error:
        raise click.ClickException(
            f"the missing images of {path} are unknown: {error}. Download the whole order again."
        ) from error
    manifest = archive.manifest or {}
    if manifest.get("order_id", order_id).lower() != order_id.lower():
        raise click.UsageError(f"{path} is an archive of the order {manifest['order_id']}")
    return archive


def _has_images_of(earlier: VerifiedArchive, order: Mapping[str, Any]) -> bool:
    """Return whether an archive without a manifest has an image of an order; extensions vary with ``format``."""
    names = {Path(image["entry"]).stem for image in order["images"]}
    return any(Path(name).stem in names for name in earlier.images)


async def _confirm_price(
    service: ServiceClient, order_id: str, query: Query, ids: Sequence[str], *, yes: bool, max_credits: int | None
) -> int:
    """Compute the price in credits, have it confirmed, and return it."""
    summary = await service.order(order_id, query)
    unpaid = sum(1 for image in summary["images"] if not image["paid"] and (not ids or image["image_id"] in ids))
    price = unpaid if summary["credits"]["to_buy"] else 0
    if max_credits is not None and price > max_credits:
        raise click.ClickException(f"{price} images would have to be bought, at most {max_credits} may be")
    if price and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"full quality spends up to {price} credits: confirm with --yes")
        click.confirm(f"Spend up to {price} credits?", abort=True, err=True)
    return price


async def _download_with_progress(
    service: ServiceClient, order_id: str, query: Query, sink: BinaryIO, **selection: Any
) -> int:
    """Download an archive and draw its progress; return the number of images announced for it."""
    async with DownloadProgress(service) as progress:
        download = partial(
            service.download, order_id, sink=sink, on_bytes=progress.add_bytes, on_response=progress.response_started,
            **selection,
        )  # fmt: skip
        try:
            return await download(query=[*query, *progress.query])
        except ProblemResponse as error:
            # A proxy that lost its connection may have repeated the request, whose archive id is then in use already.
            # The download goes on without the id, and so without the progress of its images.
            if not progress.query or not str(error.problem.get("type")).endswith(f"/{ArchiveIdInUse.slug}"):
                raise
            return await download(query=query, on_response=lambda: None)


async def save_archive(download_into: Callable[[BinaryIO], Awaitable[int]], output: str, *, force: bool) -> bool:
    """Download an archive to a file, verify it, and return whether it has every image.

    Raises:
        ArchiveDamaged: the archive is not sound; no file is left.
        click.UsageError: the file exists, and ``force`` is false.
    """
    if output == "-":
        await download_into(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return True
    final = Path(output)
    part = _part_path(final, force=force)
    sink = part.open("xb")  # exclusive: an existing file or symlink of that name is not touched
    try:
        with sink:
            announced = await download_into(sink)
            _sync(sink)
        archive = verify_archive(part)
        if len(archive.images) + len(archive.failed) < announced:  # wait= may have added more
            raise ArchiveDamaged(f"it accounts for {len(archive.images) + len(archive.failed)} of {announced} images")
        part.replace(final)
    finally:
        part.unlink(missing_ok=True)
    _print_summary(final, archive)
    return not archive.failed


def _part_path(final: Path, *, force: bool) -> Path:
    """Return a new name in the same folder, so that the final rename is atomic."""
    if final.exists() and not force:
        raise click.UsageError(f"{final} exists already; --force overwrites it")
    return final.with_name(f"{final.name}.{secrets.token_hex(8)}.part")


def _sync(sink: BinaryIO) -> None:
    sink.flush()
    os.fsync(sink.fileno())


def _print_summary(final: Path, archive: VerifiedArchive) -> None:
    for record in archive.failed:
        _print(f"missing: {record.get('name')}: {record.get('detail')} ({record.get('reason')})", err=True)
    images, failed = len(archive.images), len(archive.failed)
    click.echo(f"{final}: {images} images, each verified" + (f"; {failed} missing" if failed else ""), err=True)


def _print(text: str, *, err: bool = False) -> None:
    """Print a line without control characters: names and reasons come from other people."""
    click.echo(visible(text), err=err)


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a command; print its error and exit with the code for it."""
    try:
        return asyncio.run(work)
    except SettingsError as error:
        for line in error.problems:
            click.echo(f"settings: {line}", err=True)
        sys.exit(EXIT_USAGE)
    except ProblemResponse as error:
        _print(str(error), err=True)
        for failure in error.problem.get("failures", []):
            name, detail = failure.get("name") or failure.get("file"), failure.get("detail")
            _print(f"  {name}: {detail} ({failure.get('reason')})", err=True)
        sys.exit(EXIT_BROKEN)
    except TransferError as error:
        click.echo(f"{error}; nothing was kept", err=True)
        sys.exit(EXIT_BROKEN)
    except ArchiveDamaged as error:
        click.echo(f"the archive is damaged: {error}; nothing was kept", err=True)
        sys.exit(EXIT_BROKEN)
