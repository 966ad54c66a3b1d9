"""Lets a request pass or refuses it: who may do what, asked by handlers in their first line."""

from aiohttp import web

from service.errors import AdminRequired
from service.web.services import SERVICES


def require_admin(request: web.Request) -> None:
    """Let only the operator pass.

    Raises:
        AdminRequired: the request does not carry the operator's token.
    """
    if not request.app[SERVICES].admin.is_in(request.headers):
        raise AdminRequired("This is for the operator: send ADMIN_TOKEN's value in X-Admin-Token or as bearer token.")
