"""``GET /api/sentry/issues``: what Sentry knows of this service, for the operator."""

from aiohttp import web

from service.web.auth.guards import require_admin
from service.web.services import SERVICES


async def sentry_issues(request: web.Request) -> web.Response:
    """Answer with the project's newest unresolved issues."""
    require_admin(request)
    return web.json_response({"issues": await request.app[SERVICES].sentry.list_unresolved()})
