"""What the service asks of the Autoenhance API: an order, and its images as streams."""

import asyncio
import functools
import itertools
import random
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from urllib.parse import quote, urlencode

import structlog
from yarl import URL

from service.errors import (
    OrderNotFound,
    ServiceError,
    UpstreamFailed,
    UpstreamInvalidResponse,
    UpstreamTimeout,
    UpstreamUnauthorized,
)
from service.model import Failure, Image, ImageOptions, Order, Reason
from service.monitoring.metrics import Metrics
from service.upstream.health import UpstreamHealth
from service.upstream.http.fetcher import Fetcher
from service.upstream.image_download import DownloadPolicy, ImageDownload
from service.upstream.payloads import PayloadError, read_order
from service.upstream.retry import AttemptFailed, backoff_seconds, status_failure

log = structlog.get_logger(__name__)

# An order of 2,000 images comes to about 2 MB of JSON; more than this is not an order.
MAX_ORDER_BYTES = 32 * 1024 * 1024


class UpstreamClient:
    """The API as the rest of the service sees it. Shared by the whole process.

    Without ``metrics`` and ``breaker`` it tells its own, which nobody asks.
    """

    def __init__(
        self,
        transport: Fetcher,
        *,
        api_base: str,
        policy: DownloadPolicy,
        metrics: Metrics | None = None,
        breaker: UpstreamHealth | None = None,
    ) -> None:
        self._transport = transport
        self._api_base = api_base
        self._policy = policy
        self._metrics = metrics or Metrics()
        self._breaker = breaker or UpstreamHealth(time.monotonic)

    async def find_order(self, order_id: str, *, deadline: float) -> Order:
        """Look an order up, trying again like for an image, until ``deadline`` by the event loop's clock.

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
            # The caller's deadline is shorter than the silence time-out, which would have told the breaker.
            self._breaker.failed()
            raise UpstreamTimeout("The order look-up took too long.") from error

    def open_image(
        self, image: Image, options: ImageOptions, granted: Callable[[], None] = lambda: None
    ) -> ImageDownload:
        """Return the download of an image, which starts when it is iterated.

        ``granted`` is called once, when the API agrees to deliver: from then on a paid image is bought.
        """
        return ImageDownload(
            self._transport,
            self._url("images", image.image_id, "enhanced", query=_query(options)),
            _image_headers(options),
            self._policy,
            image_id=image.image_id,
            metrics=self._metrics,
            granted=granted,
        )

    async def _look_up(self, url: URL) -> bytes:
        for tries in itertools.count(1):
            try:
                return await self._read_json(url)
            except AttemptFailed as error:
                if not error.retryable or tries >= self._policy.attempts:
                    raise
                pause_seconds = backoff_seconds(tries, error.retry_after_seconds, random.random())
                log.info("order.retried", reason=error.failure.reason.value, detail=error.failure.detail, attempt=tries)
            await asyncio.sleep(pause_seconds)
        raise AssertionError("the loop ends by returning or raising")

    async def _read_json(self, url: URL) -> bytes:
        async with self._transport.get(url, {"Accept": "application/json"}) as response:
            if response.status != HTTPStatus.OK:
                raise status_failure(response.status, response.headers)
            payload = bytearray()
            while chunk := await response.read():
                payload += chunk
                if len(payload) > MAX_ORDER_BYTES:
                    raise PayloadError("the answer is too large")
            return bytes(payload)

    def _url(self, *segments: str, query: str = "") -> URL:
        # Ids are data: whatever they hold, they stay one segment of the path.
        path = "/".join(quote(segment, safe="") for segment in segments)
        return URL(f"{self._api_base}/{path}{query}", encoded=True)


@functools.lru_cache(maxsize=256)  # the same for every image of an archive
def _query(options: ImageOptions) -> str:
    """``preview`` is always said: the API's default may change, and full quality costs money."""
    values = {
        "preview": options.preview,
        "format": options.format,
        "quality": options.quality,
        "max_width": options.max_width,
        "scale": options.scale,
        "watermark": options.watermark,
        "finetune": options.finetune,
    }
    said = {
        name: str(value).lower() if isinstance(value, bool) else f"{value}"
        for name, value in values.items()
        if value is not None
    }
    return f"?{urlencode(said)}"


def _image_headers(options: ImageOptions) -> Mapping[str, str]:
    # One client found that "Accept: application/json" keeps the image back; any type will do.
    return {"Accept": "*/*", "x-dev-mode": "true"} if options.dev_mode else {"Accept": "*/*"}


def _look_up_error(failure: Failure) -> ServiceError:
    status = failure.upstream_status
    if status == HTTPStatus.NOT_FOUND:
        return OrderNotFound("Autoenhance knows no order with this id.")
    if failure.reason is Reason.UNAUTHORIZED:
        return UpstreamUnauthorized("Autoenhance refuses the API key of this service; its operator must mend it.")
    if failure.reason is Reason.TIMEOUT:
        return UpstreamTimeout(f"The order look-up failed: {failure.detail}.")
    return UpstreamFailed(f"The order look-up failed: {failure.detail}.", upstream_status=status)
