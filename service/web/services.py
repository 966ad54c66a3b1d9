"""What handlers need of the process: made once by ``app``, looked up under one key."""

from dataclasses import dataclass

from aiohttp import web

from service.metrics import Metrics
from service.pipeline import StreamLimits
from service.readahead import Budget
from service.upstream.client import UpstreamClient


@dataclass(frozen=True, slots=True)
class Services:
    """The shared parts and plain values of one running app. ``upstream`` is ``None`` without an API key."""

    upstream: UpstreamClient | None
    metrics: Metrics
    limits: StreamLimits
    total_budget: Budget
    max_images: int
    first_byte_seconds: float


SERVICES = web.AppKey("services", Services)
