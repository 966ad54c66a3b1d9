"""The composition root: what exists, how it is wired, and the table of routes.

``create_app`` builds everything from the settings; nothing happens at import, so two apps fit one process.
"""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import ClientSession, web
from yarl import URL

from service.metrics import Metrics
from service.pipeline import StreamLimits
from service.readahead import Budget, ConnectionShare
from service.settings import Settings
from service.upstream.addresses import TargetRules
from service.upstream.client import UpstreamClient
from service.upstream.download import DownloadPolicy
from service.upstream.politeness import Politeness
from service.upstream.transport import Transport, open_session
from service.web import ops
from service.web.admission import Admission
from service.web.middleware import add_headers, answer_problems, trace_request
from service.web.order_archive import get_order_archive
from service.web.services import SERVICES, Services

# A request has no body worth mentioning; what has one is answered before it is read.
MAX_REQUEST_BODY_BYTES = 64 * 1024


def create_app(settings: Settings) -> web.Application:
    """Return the app; its resources open when it starts and close when it stops."""
    app = web.Application(middlewares=[trace_request, answer_problems], client_max_size=MAX_REQUEST_BODY_BYTES)
    app.on_response_prepare.append(add_headers)
    # Any segment is taken as an order id, so that a bad one is told what is wrong with it.
    app.router.add_get("/orders/{order_id:[^/]+}/images", get_order_archive)
    app.router.add_get("/health", ops.health)
    app.router.add_get("/health/live", ops.live)
    app.router.add_get("/health/ready", ops.ready)
    app.router.add_get("/metrics", ops.metrics)
    app.router.add_get("/problems/{slug}", ops.explain_problem)

    async def services(app: web.Application) -> AsyncIterator[None]:
        session = open_session(
            allow_private=settings.allow_private_upstream,
            connect_timeout_seconds=settings.connect_timeout_seconds,
        )
        async with session:
            app[SERVICES] = Services(
                upstream=_upstream_client(settings, session) if settings.autoenhance_api_key else None,
                metrics=Metrics(),
                admission=Admission(settings.max_archives),
                limits=StreamLimits(
                    images_in_flight=settings.images_in_flight,
                    read_ahead_bytes=settings.read_ahead_bytes,
                    give_up_after=settings.give_up_after,
                ),
                total_budget=Budget(settings.read_ahead_total_bytes),
                connections=ConnectionShare(settings.upstream_connections),
                max_images=settings.max_images_per_order,
                public_url=settings.public_url,
                first_byte_seconds=settings.first_byte_seconds,
                client_stall_seconds=settings.client_stall_seconds,
            )
            yield

    app.cleanup_ctx.append(services)
    return app


def _upstream_client(settings: Settings, session: ClientSession) -> UpstreamClient:
    key = settings.autoenhance_api_key
    headers = {
        "x-api-key": key.get_secret_value() if key else "",
        "x-api-version": settings.autoenhance_api_version,
    }
    rules = TargetRules(
        api_origin=URL(settings.autoenhance_api_base).origin(),
        allow_private=settings.allow_private_upstream,
        allowed_hosts=settings.upstream_allowed_hosts,
    )
    transport = Transport(
        session,
        rules,
        politeness=Politeness(settings.upstream_requests_per_second, clock=asyncio.get_running_loop().time),
        api_headers=headers,
        silence_seconds=settings.image_timeout_seconds,
    )
    policy = DownloadPolicy(attempts=settings.image_attempts)
    return UpstreamClient(transport, api_base=settings.autoenhance_api_base, policy=policy)
