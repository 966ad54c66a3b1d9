"""What handlers need of the process: made once by ``app``, looked up under one key."""

from dataclasses import dataclass

from aiohttp import web

from service.metrics import Metrics
from service.pipeline import StreamLimits
from service.readahead import Budget, ConnectionShare
from service.upstream.client import UpstreamClient
from service.web.admission import Admission


@dataclass(frozen=True, slots=True)
class Services:
    """The shared parts and plain values of one running app. ``upstream`` is ``None`` without an API key."""

    upstream: UpstreamClient | None
    metrics: Metrics
    admission: Admission
    limits: StreamLimits
    total_budget: Budget
    connections: ConnectionShare
    max_images: int
    public_url: str | None
    first_byte_seconds: float
    client_stall_seconds: float


SERVICES = web.AppKey("services", Services)
