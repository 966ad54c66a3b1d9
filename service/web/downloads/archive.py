"""``GET`` and ``POST /orders/{order_id}/images``: stream the archive of an order while its images arrive.

The steps: parse, admit, look up, plan, stream.
"""

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import structlog
from aiohttp import HttpVersion11, web
from yarl import URL

from service.archive.naming import archive_filename, content_disposition
from service.archive.parameters import ArchiveOptions, check_archive_id, check_order_id, parse_parameters
from service.archive.plan import IMAGE_REMOVED, ArchivePlan, plan_archive
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
from service.web.downloads.conditions import precondition_problem
from service.web.downloads.context import DOWNLOADS, DownloadsContext
from service.web.downloads.record import ArchiveRecord
from service.web.downloads.selection import select_missing
from service.web.http.streaming_response import STREAMING, StreamingResponse

ORDER_ID_CHARACTERS = 36
# About 45 bytes each ("&only=" and a UUID): with this many, a URL stays below the 8 KiB that nginx accepts by default.
IDS_PER_RETRY_URL = 100
TRAILERS = ("X-Downloaded", "X-Failed")
# The page submits a form from a hidden frame, so that an error does not replace the page. Browsers check whether a
# response may be framed before they save it (WHATWG HTML, section 7.4.5 "Populating a session history entry").
_FRAMED_BY_THE_PAGE = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
}


async def get_order_archive(request: web.Request) -> web.StreamResponse:
    """Stream the archive of an order; HEAD gets its status and headers only."""
    context = request.app[DOWNLOADS]
    receipt = context.receipts.new(
        _client_archive_id(request) or str(uuid.uuid4()),
        link=link_token(request),
        request=_request_digest(request),
        body=None if request.method == "POST" else "",
    )
    record = ArchiveRecord(request, receipt, context.metrics)
    # A longer value is not an id, and must not fill the log.
    order_id = request.match_info["order_id"][:ORDER_ID_CHARACTERS]
    structlog.contextvars.bind_contextvars(order_id=order_id, archive_id=record.archive_id)
    if request.method == "HEAD":  # makes no archive: there is nothing to account for
        return await _serve(request, context, record)
    with record:
        return await _serve(request, context, record)


async def _serve(request: web.Request, context: DownloadsContext, record: ArchiveRecord) -> web.StreamResponse:
    # 1. Parse. No upstream request is sent before this succeeds.
    order_id, options, upstream = _parse(request, context, record)
    # 2. Admit. Before the look-up, so that a flood of requests is not passed on upstream.
    with context.admission.admit():
        if request.method == "POST":
            options = await _read_selection(request, context, order_id, options, record)
            if not options.only:
                return web.Response(status=204)
        # 3. Look up. It shares its deadline with the first byte of the first image.
        requested_at = asyncio.get_running_loop().time()
        deadline = requested_at + context.first_byte_seconds
        order = await upstream.find_order(order_id, deadline=deadline)
        if request.method == "HEAD":
            plan = plan_archive(order, options, max_images=context.max_images)
            return web.Response(headers=_headers(plan, record.archive_id), content_type="application/zip")
        async with AsyncExitStack() as stack:
            # 4. Plan. With ``wait``, images may become ready until the wait ends; the first byte's deadline follows.
            subscription = None
            if options.wait and may_change(order, options):
                until = requested_at + options.wait
                subscription = await stack.enter_async_context(
                    context.order_watcher.subscribe(order, requested_at, until=until)
                )
                order = await _wait_for_images(order, subscription)
                deadline = until + context.first_byte_seconds
            plan = plan_archive(order, options, max_images=context.max_images)
            # 5. Stream.
            return await ArchiveDownload(request, context, upstream, plan, record).run(deadline, subscription)


def _parse(
    request: web.Request, context: DownloadsContext, record: ArchiveRecord
) -> tuple[str, ArchiveOptions, UpstreamClient]:
    """Authorise and validate the request; return the order's id, the options, and the API's client."""
    order_id = request.match_info["order_id"]
    role = require_order_download(request, order_id)
    not_resumable = precondition_problem(request)
    # From here on the events show the outcome, also an error. A rejected resumption leaves its id to the next complete
    # download.
    if _client_archive_id(request) is not None and request.method != "HEAD" and not_resumable is None:
        context.receipts.register(record.receipt)
    order_id = check_order_id(order_id)
    options = parse_parameters((name, value) for name, value in request.query.items() if name != LINK)
    require_full_quality(role, options.image)
    if options.wait > context.wait_max_seconds:
        raise InvalidParameter("wait", f"'wait' must be at most {context.wait_max_seconds} here.")
    upstream = require_upstream(context.upstream)
    # Preconditions count only where the request would succeed without them (RFC 9110 section 13.2.1).
    if not_resumable is not None:
        raise not_resumable
    return order_id, options, upstream


async def _read_selection(
    request: web.Request, context: DownloadsContext, order_id: str, options: ArchiveOptions, record: ArchiveRecord
) -> ArchiveOptions:
    """Return the options with the images that the body selects; only now the receipt can be compared with others."""
    options = await select_missing(request, order_id, options, max_images=context.max_images)
    record.receipt.body = _digest(sorted(options.only))
    if options.archive_id is not None:
        context.receipts.register(record.receipt)
    return options


def _client_archive_id(request: web.Request) -> str | None:
    """Return the archive id that the client has chosen, if it is valid."""
    try:
        return check_archive_id(request.query.get("archive_id", ""))
    except InvalidArchiveId:
        return None


def _request_digest(request: web.Request) -> str:
    """Return an opaque digest of a client and its request, without the body and the archive id."""
    query = sorted([name, value] for name, value in request.query.items() if name not in UNSIGNED_PARAMETERS)
    order_id = request.match_info["order_id"].lower()
    return _digest([client_fingerprint(request), request.method, order_id, query])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _has_failed(task: asyncio.Task[None]) -> bool:
    return not task.cancelled() and task.exception() is not None


async def _wait_for_images(order: Order, subscription: Subscription) -> Order:
    """Wait until a busy order lists images, or the subscription ends: while brackets are merged it lists none."""
    while not order.images and order.busy and (later := await subscription.next()) is not None:
        order = later
    return order


class ArchiveDownload:
    """Connects one archive stream to one response."""

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
            upstream.images(plan.options.image),
            limits=context.limits,
            total_budget=context.total_budget,
            download_share=context.connections,
            observer=record,
            report_context=self._report_context,
        )

    async def run(self, first_byte_deadline: float, subscription: Subscription | None) -> web.StreamResponse:
        """Stream the archive; an error after the first byte propagates to the middleware, which aborts the response."""
        async with self._plan_updates(subscription):
            return await self._run(first_byte_deadline)

    @asynccontextmanager
    async def _plan_updates(self, subscription: Subscription | None) -> AsyncIterator[None]:
        """Add images as they become ready, in a separate task, while the context is open."""
        if subscription is None:
            yield
            return
        self._stream.keep_open()
        archive_task = asyncio.current_task()
        updates = asyncio.create_task(self._add_images(subscription))
        # A bug in the task must not leave the archive waiting forever.
        updates.add_done_callback(lambda done: archive_task.cancel() if archive_task and _has_failed(done) else None)
        try:
            yield
        finally:
            updates.cancel()
            await asyncio.wait([updates])
            if _has_failed(updates):
                await updates

    async def _add_images(self, subscription: Subscription) -> None:
        updater = PlanUpdater(self._plan, max_images=self._max_images)
        while updater.may_change and (order := await subscription.next()) is not None:
            delta = updater.update(order)
            if not delta:
                continue
            self._record.receipt.add_images([(item.position, item.image) for item in delta.added])
            self._stream.add(delta.ready, delta.failed, appeared=len(delta.added))
        self._stream.add((), updater.fail_pending())
        self._stream.finish_adding()

    async def _run(self, first_byte_deadline: float) -> web.StreamResponse:
        self._record.set_plan(self._plan, self._stream, _parameters(self._request))
        if self._plan.options.archive_id is None:
            self._receipts.register(self._record.receipt)
        with self._in_progress.track_inprogress():
            try:
                self._stream.start()
                await self._stream.wait_first_byte(first_byte_deadline)
                response = await self._start_response()
                self._record.response_started(response)
                await self._stream.run(response)
                await response.write_eof()
            finally:
                self._stream.close()
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

    def _report_context(self, outcomes: Sequence[Outcome]) -> ReportContext:
        order = self._plan.order
        # Images that the order no longer lists would be rejected.
        missing = [one.image.image_id for one in outcomes if one.failure is not None and one.failure != IMAGE_REMOVED]
        # ``only`` is replaced, all other parameters stay; a link is valid only for the request it was signed for.
        replaced = {"only", *UNSIGNED_PARAMETERS}
        query = [(name, value) for name, value in self._request.query.items() if name not in replaced]
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
    """Return URLs for the missing images, each short enough for a request line."""
    urls = []
    for start in range(0, len(missing), IDS_PER_RETRY_URL):
        ids = missing[start : start + IDS_PER_RETRY_URL]
        urls.append(str(url.with_query([*query, *(("only", image_id) for image_id in ids)])))
    return urls


def _headers(plan: ArchivePlan, archive_id: str) -> dict[str, str]:
    """Return the archive's headers; proxies must not store, transform or buffer it (nginx: X-Accel-Buffering)."""
    return {
        "Content-Disposition": content_disposition(archive_filename(plan.order.name, plan.order.order_id)),
        "X-Total-Images": str(plan.total),
        "X-Archive-Id": archive_id,
        "Cache-Control": "no-store, no-transform",
        "X-Accel-Buffering": "no",
    }


def _parameters(request: web.Request) -> dict[str, str]:
    """Return the request's parameters without the selection of images and the authorisation."""
    return {name: value for name, value in request.query.items() if name not in {"only", *UNSIGNED_PARAMETERS}}
