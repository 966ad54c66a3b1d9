"""``/health``, ``/health/live``, ``/health/ready``: health, liveness and readiness probes."""

from aiohttp import web

from service.errors import InvalidParameter, RepeatedParameter, UnknownParameter
from service.web.operations.context import OPERATIONS

# The one parameter of /health/ready, upstream=ignore: a failing upstream does not make the replica unready. Without it
# all replicas become unready together, and a proxy that then serves none of them takes page and receipts away too.
UPSTREAM, IGNORE = "upstream", "ignore"


async def get_health(request: web.Request) -> web.Response:
    """Return that the service runs, and whether it has an API key."""
    configured = request.app[OPERATIONS].api_key_configured
    return web.json_response({"status": "ok", "api_key_configured": configured})


async def get_liveness(_request: web.Request) -> web.Response:
    """Return that the event loop runs. Depends on nothing else, so it holds whatever the upstream does."""
    return web.json_response({"status": "ok"})


async def get_readiness(request: web.Request) -> web.Response:
    """Return whether orders can be served: 503 with the reasons if not."""
    context, ignores_upstream = request.app[OPERATIONS], _ignores_upstream(request)
    conditions = {
        "no_api_key": not context.api_key_configured,
        "draining": context.admission.draining,
        "upstream_failing": context.upstream_health.is_failing and not ignores_upstream,
    }
    reasons = [reason for reason, holds in conditions.items() if holds]
    status = 503 if reasons else 200
    return web.json_response({"status": "unready" if reasons else "ok", "reasons": reasons}, status=status)


def _ignores_upstream(request: web.Request) -> bool:
    """Parse ``upstream=ignore``. A misspelt probe is an error: it would check something else than intended.

    Raises:
        InvalidParameter, UnknownParameter, RepeatedParameter
    """
    for name in request.query:
        if name != UPSTREAM:
            raise UnknownParameter(name, f"There is no parameter {name!r}; known is {UPSTREAM}.")
    values = request.query.getall(UPSTREAM, [])
    if len(values) > 1:
        raise RepeatedParameter(UPSTREAM, f"The parameter {UPSTREAM!r} is given more than once.")
    if values not in ([], [IGNORE]):
        raise InvalidParameter(UPSTREAM, f"{UPSTREAM!r} must be {IGNORE}.")
    return bool(values)
