"""``GET /api/sentry/issues``: the unresolved Sentry issues of this service, for the operator."""

from aiohttp import web

from service.web.auth.guards import require_admin
from service.web.operations.context import OPERATIONS


async def get_sentry_issues(request: web.Request) -> web.Response:
    """Return the project's newest unresolved issues."""
    require_admin(request)
    return web.json_response({"issues": await request.app[OPERATIONS].sentry.list_unresolved()})
