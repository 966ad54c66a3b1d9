"""``GET /api/stats``: what the process has done since its start, for people and for a page."""

import time
from typing import Any

from aiohttp import web

from service.web.auth.credentials import Role
from service.web.auth.guards import role_of
from service.web.services import SERVICES


async def stats(request: web.Request) -> web.Response:
    """Answer with the counts since the start; the recent errors are for the operator only."""
    services = request.app[SERVICES]
    answer: dict[str, Any] = {
        "version": services.version,
        "uptime_seconds": round(time.monotonic() - services.started, 3),
        "in_progress": {
            "archives": services.admission.active,
            "read_ahead_bytes": services.total_budget.held_bytes,
            "draining": services.admission.draining,
            "upstream_failing": services.breaker.is_failing,
        },
        "counters": services.metrics.totals(),
        "limits": dict(services.public_limits),
    }
    if role_of(request) is Role.ADMIN:
        answer["recent_errors"] = services.recent_errors.newest_first()
    return web.json_response(answer)
