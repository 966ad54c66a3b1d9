"""``order show``, ``order create`` and ``order download``: what people do with a service, from a terminal.

Exit codes: 0 all is there; 1 something failed or is missing, and what there is was kept; 2 wrong usage or settings;
3 the service refused or the transfer broke, and nothing was kept.
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
from service.cli.progress import Receiving, sending
from service.cli.service_client import ProblemResponse, Query, Service, TransferBroke
from service.cli.verify import ArchiveDamaged, Verified, verify
from service.errors import ArchiveIdInUse, SettingsError
from service.monitoring.logs import configure_logs
from service.server.run import serving
from service.settings import load_settings

EXIT_INCOMPLETE, EXIT_USAGE, EXIT_BROKEN = 1, 2, 3
POLL_SECONDS = 3.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Target:
    """Which service is spoken to, and as whom."""

    url: str
    key: str | None
    admin_token: str | None
    direct: bool

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Service]:
        if not self.direct:
            async with Service(self.url, key=self.key, admin_token=self.admin_token) as service:
                yield service
            return
        settings = load_settings(host="127.0.0.1", port=0, metrics_port=None, log_level="error")
        configure_logs(log_format="console", level="error", secrets=settings.secrets(), stream=sys.stderr)
        # Whoever can start this process has the key of the API. Others on this machine reach its port too, so it opens
        # to nobody who does not know two secrets that live as long as it does.
        key, token = secrets.token_urlsafe(), secrets.token_urlsafe()
        ours = {
            "service_api_keys": (SecretStr(key),),
            "service_api_key": None,
            "admin_token": SecretStr(token),
            "allow_full_quality": False,
        }
        async with (
            serving(settings.model_copy(update=ours)) as url,
            Service(url, key=key, admin_token=token) as service,
        ):
            yield service


@click.group("order")
@click.option("--service", "url", envvar="BATCH_SERVICE_URL", default="http://localhost:8000", show_default=True,
              help="Address of the service (BATCH_SERVICE_URL).")  # fmt: skip
@click.option("--api-key", envvar="BATCH_SERVICE_KEY", help="A key of the service (BATCH_SERVICE_KEY).")
@click.option("--admin-token", envvar="ADMIN_TOKEN", help="The operator's token, to create orders (ADMIN_TOKEN).")
@click.option("--direct", is_flag=True, help="Do without a running service: work in this process, by its settings.")
@click.pass_context
def order(context: click.Context, url: str, api_key: str | None, admin_token: str | None, *, direct: bool) -> None:
    """Look at an order, create one, or download its images.

    Exit codes: 0 all is there, 1 something failed or is missing, 2 wrong usage, 3 refused or broken off.
    """
    context.obj = _Target(url, api_key, admin_token, direct)


@order.command("show")
@click.argument("order_id")
@click.option("--json", "as_json", is_flag=True, help="Print the service's answer as it is.")
@click.pass_obj
def show(target: _Target, order_id: str, *, as_json: bool) -> None:
    """Show what the order ORDER_ID holds: each image, whether it is ready, and what full quality would cost."""

    async def look() -> dict[str, Any]:
        async with target.opened() as service:
            return await service.order(order_id)

    found = _run(look())
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for image in found["images"]:
        why = f"  ({image['detail']})" if image["detail"] else ""
        paid = "  paid" if image["paid"] else ""
        _say(f"{image['readiness']:<10}  {image['entry']}{paid}{why}")
    counts, credits_ = found["counts"], found["credits"]
    _say(
        f"{found['name'] or '(no name)'}: {found['status']}, {counts['ready']} of {counts['total']} images ready; "
        f"full quality would cost {credits_['full_quality']} credits"
    )


@order.command("create")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", default="", help="Name of the order; its archive is named after it.")
@click.option("--wait", type=click.IntRange(0), default=0, help="Seconds to wait until the photos are enhanced.")
@click.pass_obj
def create(target: _Target, files: tuple[Path, ...], name: str, wait: int) -> None:
    """Send photos in as a new order, and print its id. Needs the operator's token."""
    total = sum(file.stat().st_size for file in files)

    async def send() -> dict[str, Any]:
        async with target.opened() as service:
            with sending(total) as advance:
                made = await service.create_order(files, {"name": name} if name else {}, advance)
            await _until_enhanced(service, made["order_id"], wait)
            return made

    made = _run(send())
    for image in made["images"]:
        if image["outcome"] == "failed":
            _say(f"{image['file']}: {image['detail']} ({image['reason']})", err=True)
    _say(made["order_id"])
    if made["failed"]:
        sys.exit(EXIT_INCOMPLETE)


async def _until_enhanced(service: Service, order_id: str, wait_seconds: float) -> None:
    end = time.monotonic() + wait_seconds
    while time.monotonic() < end and (await service.order(order_id))["counts"]["not_ready"]:  # noqa: ASYNC110 - remote
        await asyncio.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))


@order.command("download")
@click.argument("order_id")
@click.option("-o", "--output", required=True, help="The archive's file, or - for standard output.")
@click.option("--full/--preview", help="Full quality, which spends credits, or previews, which are free (default).")
@click.option("--yes", is_flag=True, help="Spend credits without asking.")
@click.option("--max-credits", type=click.IntRange(0), help="Do not begin if more images than this must be bought.")
@click.option("--format", "format_", help="jpeg, png, webp, avif or jxl.")
@click.option("--quality", type=int, help="1 to 90.")
@click.option("--dev-mode/--no-dev-mode", default=None, help="Watermarked test images; never spends credits.")
@click.option("--max-width", type=int, help="Greatest width in pixels.")
@click.option("--scale", help="Above 0, up to 1.")
@click.option("--watermark/--no-watermark", default=None, help="Ask for a watermark, or for none.")
@click.option("--finetune/--no-finetune", default=None, help="Passed on to the API.")
@click.option("--layout", help="streamable or stored.")
@click.option("--on-error", help="report (default): go on, and list what failed; abort: all or nothing.")
@click.option("--manifest", help="auto (default) or always.")
@click.option("--wait", type=click.IntRange(0), default=0, help="Seconds to wait for images that are not ready yet.")
@click.option("--only", multiple=True, help="Id of an image to take; may be repeated.")
@click.option("--missing-from", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Fetch only the images that this earlier archive of the order lacks.")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite the file if it is there.")
@click.pass_obj
def download(
    target: _Target,
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

    A file is written beside its final name, as a new one, until it is whole and checked; to standard output only the
    clean end of the transfer is checked.
    """
    query = [*_query(choices), *([("preview", "false")] if full else [])]
    earlier = _earlier(missing_from, order_id) if missing_from is not None else None

    async def fetch() -> bool:
        missing = [record["image_id"] for record in earlier.failed if record["image_id"]] if earlier else []
        async with target.opened() as service:
            if earlier is not None:
                if earlier.manifest is None and not _shares_names(earlier, await service.order(order_id)):
                    raise click.UsageError(f"{missing_from} has no image of the order {order_id}")
                _say(f"{missing_from} lacks {f'{len(missing)} images' if missing else 'nothing'}.", err=True)
                if not missing:
                    return True
            agreed = query
            if full:
                price = await _agree_to_spend(
                    service, order_id, query, missing or only, yes=yes, max_credits=max_credits
                )
                # What was agreed to binds the service too: the order may have changed since.
                agreed = [*query, ("max_credits", str(max_credits if max_credits is not None else price))]
            taking = partial(_take, service, order_id, agreed, only=only, missing=missing, wait_seconds=wait)
            return await _fetch(taking, output, force=force)

    if not _run(fetch()):
        sys.exit(EXIT_INCOMPLETE)


def _query(choices: Mapping[str, Any]) -> list[tuple[str, str]]:
    given = [(name.rstrip("_"), value) for name, value in choices.items() if value is not None]
    return [(name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in given]


def _earlier(path: Path, order_id: str) -> Verified:
    """Return what an earlier archive of the order holds and lacks, by its own manifest."""
    try:
        verified = verify(path)
    except ArchiveDamaged as error:
        raise click.ClickException(
            f"{path} cannot tell what it lacks: {error}. Download the whole order again."
        ) from error
    manifest = verified.manifest or {}
    if manifest.get("order_id", order_id).lower() != order_id.lower():
        raise click.UsageError(f"{path} is an archive of the order {manifest['order_id']}")
    return verified


def _shares_names(earlier: Verified, order: Mapping[str, Any]) -> bool:
    """Whether an archive without a manifest has an image of an order; extensions follow the type that was asked for."""
    names = {Path(image["entry"]).stem for image in order["images"]}
    return any(Path(name).stem in names for name in earlier.images)


async def _agree_to_spend(
    service: Service, order_id: str, query: Query, ids: Sequence[str], *, yes: bool, max_credits: int | None
) -> int:
    """Tell the price in credits, and go on only if it is agreed to; return it."""
    found = await service.order(order_id, query)
    bought = sum(1 for one in found["images"] if not one["paid"] and (not ids or one["image_id"] in ids))
    price = 0 if not found["credits"]["to_buy"] else bought
    if max_credits is not None and price > max_credits:
        raise click.ClickException(f"{price} images would have to be bought, at most {max_credits} may be")
    if price and not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"full quality spends up to {price} credits: agree to it with --yes")
        click.confirm(f"Spend up to {price} credits?", abort=True, err=True)
    return price


async def _take(service: Service, order_id: str, query: Query, sink: BinaryIO, **what: Any) -> int:
    """Download an archive and show how far it is; return the number of images that it was to hold."""
    async with Receiving(service).shown() as shown:
        try:
            watched = [*query, *shown.query]
            return await service.download(order_id, watched, sink, shown.received, on_begin=shown.begun, **what)
        except ProblemResponse as error:
            # So it is if a proxy, which lost its connection, asks again by itself. To watch is not worth a download.
            if not shown.query or not str(error.problem.get("type")).endswith(f"/{ArchiveIdInUse.slug}"):
                raise
            return await service.download(order_id, query, sink, shown.received, **what)


async def _fetch(taking: Callable[[BinaryIO], Awaitable[int]], output: str, *, force: bool) -> bool:
    """Download the archive by ``taking``; return whether every image asked for is in it."""
    if output == "-":
        await taking(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return True
    final = Path(output)
    part = _beside(final, force=force)
    sink = part.open("xb")  # it is ours alone: neither a file nor a symlink that lies there is touched
    try:
        with sink:
            asked = await taking(sink)
            _to_disk(sink)
        verified = verify(part)
        if len(verified.images) + len(verified.failed) < asked:  # more may have appeared while it waited
            raise ArchiveDamaged(f"it accounts for {len(verified.images) + len(verified.failed)} of {asked} images")
        part.replace(final)
    finally:
        part.unlink(missing_ok=True)
    return _told(final, verified)


def _beside(final: Path, *, force: bool) -> Path:
    """Return where a file is written until it is whole: in the same folder, so that renaming it is one step."""
    if final.exists() and not force:
        raise click.UsageError(f"{final} is there already; --force overwrites it")
    return final.with_name(f"{final.name}.{secrets.token_hex(8)}.part")


def _to_disk(sink: BinaryIO) -> None:
    sink.flush()
    os.fsync(sink.fileno())


def _told(final: Path, verified: Verified) -> bool:
    for record in verified.failed:
        _say(f"missing: {record.get('name')}: {record.get('detail')} ({record.get('reason')})", err=True)
    number, failed = len(verified.images), len(verified.failed)
    click.echo(f"{final}: {number} images, each checked" + (f"; {failed} missing" if failed else ""), err=True)
    return not failed


def _say(words: str, *, err: bool = False) -> None:
    """Write a line. Names and reasons in it were written by others: none of them may command the terminal."""
    click.echo(visible(words), err=err)


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run, and turn what went wrong into words and an exit code."""
    try:
        return asyncio.run(work)
    except SettingsError as error:
        for line in error.problems:
            click.echo(f"settings: {line}", err=True)
        sys.exit(EXIT_USAGE)
    except ProblemResponse as error:
        _say(str(error), err=True)
        for failure in error.problem.get("failures", []):
            name, detail = failure.get("name") or failure.get("file"), failure.get("detail")
            _say(f"  {name}: {detail} ({failure.get('reason')})", err=True)
        sys.exit(EXIT_BROKEN)
    except TransferBroke as error:
        click.echo(f"{error}; nothing was kept", err=True)
        sys.exit(EXIT_BROKEN)
    except ArchiveDamaged as error:
        click.echo(f"what arrived is damaged: {error}; nothing was kept", err=True)
        sys.exit(EXIT_BROKEN)
