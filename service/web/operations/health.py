"""What operators and their machines ask: health, metrics, and what a problem type means."""

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from service.errors import InvalidParameter, NotFound, RepeatedParameter, UnknownParameter, concrete_errors, explanation
from service.web.services import SERVICES

# The one thing that may be said to /health/ready, upstream=ignore: an upstream that fails is no reason. Without it all
# replicas become unready together, and a proxy that then serves nobody takes page and receipts away too.
UPSTREAM, IGNORE = "upstream", "ignore"


async def health(request: web.Request) -> web.Response:
    """Say that the service runs, and whether it has an API key."""
    configured = request.app[SERVICES].upstream is not None
    return web.json_response({"status": "ok", "api_key_configured": configured})


async def live(_request: web.Request) -> web.Response:
    """Say that the event loop answers. Asks nobody else, so it stays true whatever the upstream does."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """Say whether orders can be served: 503 with the reasons if not."""
    services, ignores_upstream = request.app[SERVICES], _ignores_upstream(request)
    conditions = {
        "no_api_key": services.upstream is None,
        "draining": services.admission.draining,
        "upstream_failing": services.breaker.is_failing and not ignores_upstream,
    }
    reasons = [reason for reason, holds in conditions.items() if holds]
    status = 503 if reasons else 200
    return web.json_response({"status": "unready" if reasons else "ok", "reasons": reasons}, status=status)


def _ignores_upstream(request: web.Request) -> bool:
    """Tell whether whoever asks wants to know of this process alone.

    Raises:
        InvalidParameter, UnknownParameter, RepeatedParameter: or a misspelt probe would ask something else.
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


async def metrics(request: web.Request) -> web.Response:
    """Answer a Prometheus scrape, in OpenMetrics to whoever asks for it."""
    try:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    except (TypeError, ValueError):  # it stumbles over a version that is no number
        encode, content_type = choose_encoder("")
    return web.Response(body=encode(request.app[SERVICES].metrics.registry), headers={"Content-Type": content_type})


async def explain_problem(request: web.Request) -> web.Response:
    """Explain a problem type to whoever opens its URI (RFC 9457 section 4.1)."""
    for error in concrete_errors():
        if error.slug == request.match_info["slug"]:
            return web.Response(text=explanation(error))
    raise NotFound("There is no such problem type.")
