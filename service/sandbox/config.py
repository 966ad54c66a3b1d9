"""Configuration of a sandbox; every field may be changed while it runs."""

import time
from collections.abc import Callable
from dataclasses import dataclass

# The documented limit of the API: requests per second and address.
DEFAULT_RATE_LIMIT = 300
DEFAULT_API_KEY = "sandbox-0000000000000000000000000000000"


@dataclass(kw_only=True, eq=False)
class SandboxConfig:
    """Defaults for all requests and images without a script or a field of their own.

    ``credits`` is the balance (None: unlimited). With ``repeats_cost`` every request for a paid image costs again.
    ``not_ready_status`` and ``no_credits_status`` are configurable because the real codes are not documented.
    ``processing_polls`` is the number of polls after which an upload is processed, ``daily_enhancements`` the number of
    uploads after which further ones fail. ``clock`` returns seconds and serves the limits only.
    """

    api_key: str = DEFAULT_API_KEY
    etags: bool = True
    ranges: bool = True
    content_lengths: bool = True
    rate_limit: int | None = DEFAULT_RATE_LIMIT
    latency_seconds: float = 0.0
    credits: int | None = None
    repeats_cost: bool = False
    not_ready_status: int = 404
    no_credits_status: int = 402
    processing_polls: int = 2
    daily_enhancements: int = 500
    clock: Callable[[], float] = time.monotonic
