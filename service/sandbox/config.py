"""The knobs of a sandbox which may be turned while it runs."""

import time
from collections.abc import Callable
from dataclasses import dataclass

# The documented limit of the API: requests per second and address.
DEFAULT_RATE_LIMIT = 300
DEFAULT_API_KEY = "sandbox-0000000000000000000000000000000"


@dataclass(kw_only=True, eq=False)
class Switches:
    """What the sandbox does where nothing else is scripted.

    ``credits`` is the balance (None: endless). With ``repeats_cost`` an image that is paid costs each time again: the
    ledger counts what is asked for. ``not_ready_status`` and ``no_credits_status`` are settings because the real codes
    are not documented. ``processing_polls`` is the number of look-ups after which an upload is processed,
    ``daily_enhancements`` the number of uploads after which further ones end in an error. ``clock`` serves the
    limits only and gives seconds.
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
