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
from service.upstream.http.bodies import BodyTooLarge, read_bounded
from service.upstream.http.fetcher import Fetcher
from service.upstream.image_download import DownloadPolicy, ImageDownload
from service.upstream.payloads import PayloadError, read_order
from service.upstream.retry import AttemptFailed, status_failure
from service.upstream.retry_loop import RetryLoop

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

    def open_image(
        self, image: Image, options: ImageOptions, granted: Callable[[], None] = lambda: None
    ) -> ImageDownload:
        """Return the download of an image. It starts when it is iterated.

        ``granted`` is called once, when the API has accepted the request: from then on a paid image is bought.
        """
        return ImageDownload(
            self._fetcher,
            self._url("images", image.image_id, "enhanced", query=_query(options)),
            _image_headers(options),
            self._policy,
            image_id=image.image_id,
            metrics=self._metrics,
            granted=granted,
        )

    async def _look_up(self, url: URL) -> bytes:
        def on_retry(error: AttemptFailed, attempt: int) -> None:
            log.info("order.retried", reason=error.failure.reason.value, detail=error.failure.detail, attempt=attempt)

        return await RetryLoop(self._policy.attempts).run(lambda: self._read_json(url), on_retry)

    async def _read_json(self, url: URL) -> bytes:
        async with self._fetcher.get(url, {"Accept": "application/json"}) as response:
            if response.status != HTTPStatus.OK:
                raise status_failure(response.status, response.headers)
            try:
                return await read_bounded(response.read, max_bytes=MAX_ORDER_BYTES)
            except BodyTooLarge as error:
                raise PayloadError("the response is too large") from error

    def _url(self, *segments: str, query: str = "") -> URL:
        # Ids are data: each stays one segment of the path, whatever characters it has.
        path = "/".join(quote(segment, safe="") for segment in segments)
        return URL(f"{self._api_base}/{path}{query}", encoded=True)


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
