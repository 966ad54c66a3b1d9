"""The route table: every path of the service and its handler."""

from aiohttp import web

from service.web.auth.links import create_link
from service.web.auth.sessions import create_session, delete_session, get_session
from service.web.downloads.archive import get_order_archive
from service.web.downloads.events import get_events
from service.web.downloads.receipts import get_receipt
from service.web.http.problems import get_problem
from service.web.operations.health import get_health, get_liveness, get_readiness
from service.web.operations.metrics import get_metrics
from service.web.operations.sentry_issues import get_sentry_issues
from service.web.operations.stats import get_stats
from service.web.orders.orders import get_order
from service.web.orders.thumbnails import get_thumbnail
from service.web.orders.webhooks import receive_webhook
from service.web.site.docs import get_docs, get_docs_asset, get_openapi
from service.web.site.page import get_page, get_page_config, get_static_file
from service.web.uploads.create_order import create_order, create_sample_order


def add_routes(app: web.Application) -> None:
    """Add the API, the page and the reference."""
    get, post, delete = app.router.add_get, app.router.add_post, app.router.add_delete
    # Ids match any segment: an invalid one gets a problem document with the reason instead of a 404.
    get("/orders/{order_id:[^/]+}", get_order)
    get("/orders/{order_id:[^/]+}/images", get_order_archive)
    post("/orders/{order_id:[^/]+}/images", get_order_archive)
    post("/orders/{order_id:[^/]+}/links", create_link)
    get("/archives/{archive_id:[^/]+}", get_receipt)
    # No HEAD: it would run the handler, which does not return before the archive ends.
    get("/archives/{archive_id:[^/]+}/events", get_events, allow_head=False)
    get("/images/{image_id:[A-Za-z0-9_-]{1,64}}/preview", get_thumbnail)
    post("/webhooks/autoenhance", receive_webhook)
    post("/api/create-order", create_order)
    post("/api/create-sample-order", create_sample_order)
    get("/session", get_session)
    post("/session", create_session)
    delete("/session", delete_session)
    get("/api/page", get_page_config)
    get("/api/stats", get_stats)
    get("/api/sentry/issues", get_sentry_issues)
    get("/", get_page)
    get("/static/{name:[a-z0-9-]+[.][a-z0-9.-]+}", get_static_file)
    get("/docs", get_docs)
    get("/docs/{asset}", get_docs_asset)
    get("/openapi.json", get_openapi)
    get("/problems/{slug}", get_problem)


def add_health_routes(app: web.Application) -> None:
    """Add the probes, which METRICS_PORT serves too."""
    app.router.add_get("/health", get_health)
    app.router.add_get("/health/live", get_liveness)
    app.router.add_get("/health/ready", get_readiness)


def add_metrics_route(app: web.Application) -> None:
    """Add the Prometheus endpoint, which METRICS_PORT serves instead, if it is set."""
    app.router.add_get("/metrics", get_metrics)
