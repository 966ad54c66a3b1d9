"""The client of the Autoenhance API: looks up an order, and downloads its images as streams."""

import asyncio
import functools
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from urllib.parse import quote, urlencode

import structlog
from yarl import URL

from service.errors import (
    ImageFailed,
    OrderNotFound,
    ServiceError,
    UpstreamFailed,
    UpstreamInvalidResponse,
    UpstreamTimeout,
    UpstreamUnauthorized,
)
from service.model import Failure, ImageOptions, Opened, Order, Reason
from service.monitoring.metrics import Metrics
from service.upstream.health import UpstreamHealth
from service.upstream.http.fetch import Fetch, FetchSink
from service.upstream.http.fetcher import Fetcher
from service.upstream.http.request import encode_fields
from service.upstream.image_download import ImageDownload, ImageSink
from service.upstream.image_transfer import DownloadPolicy
from service.upstream.payloads import PayloadError, read_order
from service.upstream.retry import AttemptFailed, status_failure
from service.upstream.retry_loop import RetryLoop
from service.upstream.url_policy import Target, UrlRejected

log = structlog.get_logger(__name__)

# An order of 2,000 images comes to about 2 MB of JSON; more than this is not an order.
MAX_ORDER_BYTES = 32 * 1024 * 1024


class UpstreamClient:
    """Orders and images of the API. Shared by the whole process.

    ``metrics`` and ``health`` default to private, unexported instances.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        *,
        api_base: str,
        policy: DownloadPolicy,
        metrics: Metrics | None = None,
        health: UpstreamHealth | None = None,
    ) -> None:
        self._fetcher = fetcher
        self._api_base = api_base
        self._policy = policy
        self._metrics = metrics or Metrics()
        self._health = health or UpstreamHealth(time.monotonic)

    async def find_order(self, order_id: str, *, deadline: float) -> Order:
        """Look up an order, with retries as for an image, until ``deadline`` by the event loop's clock.

        Raises:
            OrderNotFound, UpstreamFailed, UpstreamInvalidResponse, UpstreamUnauthorized, UpstreamTimeout
        """
        try:
            async with asyncio.timeout_at(deadline):
                return read_order(order_id, await self._look_up(self._url("orders", order_id)))
        except PayloadError as error:
            raise UpstreamInvalidResponse(f"The order look-up failed: {error}.") from error
        except AttemptFailed as error:
            raise _look_up_error(error.failure) from error
        except TimeoutError as error:
            # The deadline is shorter than the idle timeout, at which the fetcher records the failure.
            self._health.record_failure()
            raise UpstreamTimeout("The order look-up took too long.") from error

    def images(self, options: ImageOptions) -> "ImageSource":
        """Return the images of one archive, requested on behalf of the current client request.

        Raises:
            UpstreamFailed: the policy rejects AUTOENHANCE_API_BASE.
        """
        try:
            base = self._fetcher.target(URL(self._api_base))
        except UrlRejected as error:
            raise UpstreamFailed(f"The URL of the API is not allowed: {error}.") from error
        return ImageSource(self._fetcher, base, options, self._policy, self._metrics)

    async def _look_up(self, url: URL) -> bytes:
        def on_retry(error: AttemptFailed, attempt: int) -> None:
            log.info("order.retried", reason=error.failure.reason.value, detail=error.failure.detail, attempt=attempt)

        return await RetryLoop(self._policy.attempts).run(lambda: self._read_json(url), on_retry)

    async def _read_json(self, url: URL) -> bytes:
        response, body = await self._fetcher.get(url, {"Accept": "application/json"}, max_bytes=MAX_ORDER_BYTES)
        if response.status != HTTPStatus.OK:
            raise status_failure(response.status, response.headers)
        return body

    def _url(self, *segments: str) -> URL:
        # Ids are data: each stays one segment of the path, whatever characters it has.
        path = "/".join(quote(segment, safe="") for segment in segments)
        return URL(f"{self._api_base}/{path}", encoded=True)


class ImageSource:
    """Images of one archive: the query, the header fields and the log's fields are the same for all of them."""

    def __init__(
        self, fetcher: Fetcher, base: Target, options: ImageOptions, policy: DownloadPolicy, metrics: Metrics
    ) -> None:
        self._fetcher = fetcher
        self._base = base
        self._query = _query(options)
        self._template = fetcher.template(_image_headers(options))
        self._policy = policy
        self._metrics = metrics
        self._log = log.bind(**structlog.contextvars.get_contextvars())

    def download(self, image_id: str, sink: ImageSink, granted: Callable[[], None] | None = None) -> ImageDownload:
        """Return the download of an image into a sink; it does nothing before its ``start``.

        ``granted`` is called once, when the API agrees to deliver: from then on a paid image is bought.
        """
        path = f"{self._base.path.rstrip('/')}/images/{quote(image_id, safe='')}/enhanced{self._query}"
        target = Target(self._base.origin, path)

        def start_fetch(extra: Mapping[str, str], into: FetchSink, note: Callable[[], None] | None) -> Fetch:
            return self._fetcher.start(target, self._template, into, note, encode_fields(extra) if extra else b"")

        return ImageDownload(
            start_fetch,
            self._policy,
            sink,
            image_id=image_id,
            granted=granted,
            metrics=self._metrics,
            log=self._log,
            loop=self._fetcher.loop,
        )

    async def fetch(self, image_id: str, *, max_bytes: int) -> tuple[str, bytes]:
        """Return a whole small image: its extension and its bytes.

        Raises:
            ImageFailed: it cannot be had, or is larger than ``max_bytes``.
        """
        sink = _SmallImage(self._fetcher.loop, max_bytes)
        download = self.download(image_id, sink)
        download.start()
        try:
            return await sink.received
        finally:
            download.abort()


class _SmallImage:
    """Collects one image in memory (``image_download.ImageSink``)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_bytes: int) -> None:
        self.received: asyncio.Future[tuple[str, bytes]] = loop.create_future()
        self._max_bytes = max_bytes
        self._extension = ""
        self._content = bytearray()

    def image_opened(self, opened: Opened) -> None:
        """Begin a copy."""
        self._extension = opened.extension
        self._content.clear()

    def image_received(self, chunk: bytes, crc32: int) -> None:
        """Collect, within the bound."""
        del crc32
        self._content += chunk
        if len(self._content) > self._max_bytes:
            self.image_failed(Failure(Reason.REJECTED, f"the image has more than {self._max_bytes} bytes"))

    def image_interrupted(self, failure: Failure) -> None:
        """Wait for the next attempt."""

    def image_completed(self, size: int, crc32: int) -> None:
        """Hand the image over."""
        del size, crc32
        if not self.received.done():
            self.received.set_result((self._extension, bytes(self._content)))

    def image_failed(self, failure: Failure) -> None:
        """Hand the failure over."""
        self.image_crashed(ImageFailed(failure))

    def image_crashed(self, error: BaseException) -> None:
        """Hand a fault of the service over."""
        if not self.received.done():
            self.received.set_exception(error)


@functools.lru_cache(maxsize=256)  # the same for every image of an archive
def _query(options: ImageOptions) -> str:
    """Return the query. ``preview`` is always explicit: the API's default may change, and full quality costs money."""
    values = {
        "preview": options.preview,
        "format": options.format,
        "quality": options.quality,
        "max_width": options.max_width,
        "scale": options.scale,
        "watermark": options.watermark,
        "finetune": options.finetune,
    }
    parameters = {
        name: str(value).lower() if isinstance(value, bool) else f"{value}"
        for name, value in values.items()
        if value is not None
    }
    return f"?{urlencode(parameters)}"


def _image_headers(options: ImageOptions) -> Mapping[str, str]:
    # A client of the API found that "Accept: application/json" yields no image; any type will do.
    return {"Accept": "*/*", "x-dev-mode": "true"} if options.dev_mode else {"Accept": "*/*"}


def _look_up_error(failure: Failure) -> ServiceError:
    status = failure.upstream_status
    if status == HTTPStatus.NOT_FOUND:
        return OrderNotFound("Autoenhance knows no order with this id.")
    if failure.reason is Reason.UNAUTHORIZED:
        return UpstreamUnauthorized("Autoenhance rejects the API key of this service; its operator must replace it.")
    if failure.reason is Reason.TIMEOUT:
        return UpstreamTimeout(f"The order look-up failed: {failure.detail}.")
    return UpstreamFailed(f"The order look-up failed: {failure.detail}.", upstream_status=status)
