"""``GET /orders/{order_id}/images``: the archive of an order, streamed while its images arrive."""

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import structlog
from aiohttp import HttpVersion11, web
from yarl import URL

from service.archive.naming import archive_filename, content_disposition
from service.archive.plan import TAKEN_OUT, ArchivePlan, check_archive_id, check_order_id, parse_options, plan_archive
from service.archive.plan_updates import PlanUpdater, may_change
from service.archive.report import ReportContext
from service.errors import InvalidArchiveId, InvalidParameter
from service.model import Order, Outcome
from service.streaming.archive_stream import ArchiveStream
from service.upstream.api import UpstreamClient
from service.upstream.order_watcher import Subscription
from service.web.auth.guards import (
    LINK,
    UNSIGNED_PARAMETERS,
    client_fingerprint,
    link_token,
    require_full_quality,
    require_order_download,
    require_upstream,
)
from service.web.downloads.conditions import resumption_problem
from service.web.downloads.context import DOWNLOADS, DownloadsContext
from service.web.downloads.record import ArchiveRecord
from service.web.downloads.selection import select_missing
from service.web.http.context import STREAMING
from service.web.http.streaming_response import StreamingResponse

ORDER_ID_CHARACTERS = 36
# About 45 bytes each ("&only=" and a UUID): with this many, a URL stays below the 8 KiB that nginx takes by default.
IDS_PER_RETRY_URL = 100
TRAILERS = ("X-Downloaded", "X-Failed")
# The page sends a form from a hidden frame, so that a refusal does not take the page's place. Browsers judge whether
# an answer may be framed before they save it (WHATWG HTML, section 7.4.5 "Populating a session history entry").
_FRAMED_BY_THE_PAGE = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
}


async def get_order_archive(request: web.Request) -> web.StreamResponse:
    """Answer with the archive, or, to HEAD, with its status and headers only."""
    context = request.app[DOWNLOADS]
    receipt = context.receipts.new(
        _chosen_archive_id(request) or str(uuid.uuid4()),
        link=link_token(request),
        request=_request_digest(request),
        body=None if request.method == "POST" else "",
    )
    record = ArchiveRecord(request, receipt, context.metrics)
    # What is too long for an id is no id, and fills no log.
    order_id = request.match_info["order_id"][:ORDER_ID_CHARACTERS]
    structlog.contextvars.bind_contextvars(order_id=order_id, archive_id=record.archive_id)
    if request.method == "HEAD":  # makes no archive: there is nothing to account for
        return await _serve(request, context, record)
    with record:
        return await _serve(request, context, record)


async def _serve(request: web.Request, context: DownloadsContext, record: ArchiveRecord) -> web.StreamResponse:
    # 1. Who asks, and for what. Nothing upstream is touched before this is right.
    order_id = request.match_info["order_id"]
    role = require_order_download(request, order_id)
    not_resumable = resumption_problem(request)
    # A watcher sees what comes of it, also a refusal. A refused resumption leaves the id to the next whole download.
    if _chosen_archive_id(request) is not None and request.method != "HEAD" and not_resumable is None:
        context.receipts.file(record.receipt)
    order_id = check_order_id(order_id)
    options = parse_options((name, value) for name, value in request.query.items() if name != LINK)
    require_full_quality(role, options.image)
    if options.wait > context.wait_max_seconds:
        raise InvalidParameter("wait", f"'wait' must be at most {context.wait_max_seconds} here.")
    upstream = require_upstream(context.upstream)
    # Conditions count only where the request would succeed without them (RFC 9110 section 13.2.1).
    if not_resumable is not None:
        raise not_resumable
    # 2. Whether there is room. Before the look-up, so that a flood of requests is not passed on upstream.
    with context.admission.admit():
        if request.method == "POST":
            options = await select_missing(request, order_id, options, max_images=context.max_images)
            record.receipt.body = _digest(sorted(options.only))
            if options.archive_id is not None:
                context.receipts.file(record.receipt)
            if not options.only:
                return web.Response(status=204)
        # From here the caller waits: look-up and first image together must not take longer than this.
        asked = asyncio.get_running_loop().time()
        wait_until, deadline = asked + options.wait, asked + context.first_byte_seconds
        # 3. What there is.
        order = await upstream.find_order(order_id, deadline=deadline)
        if request.method == "HEAD":
            plan = plan_archive(order, options, max_images=context.max_images)
            return web.Response(headers=_headers(plan, record.archive_id), content_type="application/zip")
        # 4. The answer. Whoever waits for images that become ready has until then, and then for the first byte.
        async with AsyncExitStack() as stack:
            follower = None
            if options.wait and may_change(order, options):
                follower = await stack.enter_async_context(context.order_watcher.follow(order, asked, until=wait_until))
                order = await _with_images(order, follower, wait_until)
                deadline = wait_until + context.first_byte_seconds
            plan = plan_archive(order, options, max_images=context.max_images)
            download = _Download(request, context, upstream, plan, record)
            return await download.run(deadline, follower, wait_until)


def _chosen_archive_id(request: web.Request) -> str | None:
    """Return the id that the caller chose, if it is one."""
    try:
        return check_archive_id(request.query.get("archive_id", ""))
    except InvalidArchiveId:
        return None


def _request_digest(request: web.Request) -> str:
    """Return an opaque digest of a client and its request, without the body and the archive id."""
    query = sorted([name, value] for name, value in request.query.items() if name not in UNSIGNED_PARAMETERS)
    order_id = request.match_info["order_id"].lower()
    return _digest([client_fingerprint(request), request.method, order_id, query])


def _digest(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _has_failed(task: asyncio.Task[None]) -> bool:
    return not task.cancelled() and task.exception() is not None


async def _with_images(order: Order, follower: Subscription, wait_until: float) -> Order:
    """Wait until a busy order lists images, or no more news come: while brackets are merged it lists none."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(wait_until):
            while not order.images and order.busy and (later := await follower.next()) is not None:
                order = later
    return order


class _Download:
    """One caller's download: joins the archive's stream to the caller's connection."""

    def __init__(
        self,
        request: web.Request,
        context: DownloadsContext,
        upstream: UpstreamClient,
        plan: ArchivePlan,
        record: ArchiveRecord,
    ) -> None:
        self._request = request
        self._in_progress = context.metrics.archives_in_progress
        self._url = URL(context.public_url).join(request.rel_url) if context.public_url else request.url
        self._stall_seconds = context.client_stall_seconds
        self._receipts = context.receipts
        self._max_images = context.max_images
        self._plan = plan
        self._record = record
        self._stream = ArchiveStream(
            plan,
            upstream,
            limits=context.limits,
            total_budget=context.total_budget,
            connections=context.connections,
            describe=self._describe,
            count=record.count,
            writing=record.receipt.writing,
            granted=record.granted,
        )

    async def run(
        self, first_byte_deadline: float, follower: Subscription | None, wait_until: float
    ) -> web.StreamResponse:
        """Stream the archive. Whatever breaks it is raised, and breaks the connection further out."""
        async with self._followed(follower, wait_until):
            return await self._run(first_byte_deadline)

    @asynccontextmanager
    async def _followed(self, follower: Subscription | None, wait_until: float) -> AsyncIterator[None]:
        """Add what becomes ready, in a task of its own, while the context is open."""
        if follower is None:
            yield
            return
        self._stream.keep_open()
        archive = asyncio.current_task()
        following = asyncio.create_task(self._follow(follower, wait_until))
        # A fault of ours in there must not leave the archive waiting for ever.
        following.add_done_callback(lambda done: archive.cancel() if archive and _has_failed(done) else None)
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait([following])
            if _has_failed(following):
                await following

    async def _follow(self, follower: Subscription, wait_until: float) -> None:
        live = PlanUpdater(self._plan, max_images=self._max_images)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(wait_until):
                while live.waiting and (order := await follower.next()) is not None:
                    news = live.update(order)
                    if not news:
                        continue
                    self._record.receipt.appeared([(item.position, item.image) for item in news.appeared])
                    self._stream.add(news.ready, news.failed, appeared=len(news.appeared))
        self._stream.add((), live.leftovers())
        self._stream.finish_adding()

    async def _run(self, first_byte_deadline: float) -> web.StreamResponse:
        self._record.opened(self._plan, self._stream, _parameters(self._request))
        if self._plan.options.archive_id is None:
            self._receipts.file(self._record.receipt)
        with self._in_progress.track_inprogress():
            async with self._stream as stream:
                await stream.begin(first_byte_deadline)
                response = await self._start_response()
                self._record.begun(response)
                async with aclosing(stream.pieces()) as pieces:
                    async for parts in pieces:
                        await response.send(parts)
                await response.write_eof()
        return response

    async def _start_response(self) -> StreamingResponse:
        headers = _headers(self._plan, self._record.archive_id)
        if self._request.method == "POST":
            headers |= _FRAMED_BY_THE_PAGE
        if self._request.version >= HttpVersion11:
            headers["Trailer"] = ", ".join(TRAILERS)
        response = StreamingResponse(headers, self._trailers, stall_seconds=self._stall_seconds)
        self._request[STREAMING] = response
        await response.prepare(self._request)
        return response

    def _trailers(self) -> dict[str, str]:
        return dict(zip(TRAILERS, (str(self._stream.downloaded), str(self._stream.failed)), strict=True))

    def _describe(self, outcomes: Sequence[Outcome]) -> ReportContext:
        order = self._plan.order
        # What the order does not list any more would be refused.
        missing = [one.image.image_id for one in outcomes if one.failure is not None and one.failure != TAKEN_OUT]
        # ``only`` is replaced, everything else stays as the caller chose it; a link opens only what it was made for.
        query = [
            (name, value) for name, value in self._request.query.items() if name not in {"only", *UNSIGNED_PARAMETERS}
        ]
        return ReportContext(
            order_id=order.order_id,
            order_name=order.name,
            archive_id=self._record.archive_id,
            parameters=_parameters(self._request),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            retry_urls=_retry_urls(self._url, query, [image_id for image_id in missing if image_id]),
            credits_spent=self._record.credits_spent,
        )


def _retry_urls(url: URL, query: Sequence[tuple[str, str]], missing: Sequence[str]) -> list[str]:
    """Return the URLs that ask for the missing images, each short enough for a request line."""
    urls = []
    for start in range(0, len(missing), IDS_PER_RETRY_URL):
        ids = missing[start : start + IDS_PER_RETRY_URL]
        urls.append(str(url.with_query([*query, *(("only", image_id) for image_id in ids)])))
    return urls


def _headers(plan: ArchivePlan, archive_id: str) -> dict[str, str]:
    """Proxies must neither keep, nor change, nor hold back what streams (nginx: X-Accel-Buffering)."""
    return {
        "Content-Disposition": content_disposition(archive_filename(plan.order.name, plan.order.order_id)),
        "X-Total-Images": str(plan.total),
        "X-Archive-Id": archive_id,
        "Cache-Control": "no-store, no-transform",
        "X-Accel-Buffering": "no",
    }


def _parameters(request: web.Request) -> dict[str, str]:
    """Return what the caller chose about the images; which ones, and how it may have them, stands elsewhere."""
    return {name: value for name, value in request.query.items() if name not in {"only", *UNSIGNED_PARAMETERS}}
