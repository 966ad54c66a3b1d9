"""Errors of the service itself: its operator must act, or the client must wait."""

from collections.abc import Mapping
from typing import Any, ClassVar

from service.errors.base import ServiceError


class ServerError(ServiceError):
    """The service cannot handle the request now."""


class NotConfigured(ServerError):
    """A feature is off because its setting is missing: status 503, slug ``<feature>-not-configured``."""

    status = 503


class ApiKeyNotConfigured(NotConfigured):
    """`AUTOENHANCE_API_KEY` is not set: the service cannot send requests to the API."""

    slug = "api-key-not-configured"
    title = "The service has no Autoenhance API key"
    advice = "The operator must set `AUTOENHANCE_API_KEY`."
    example_detail = "The operator must set AUTOENHANCE_API_KEY; until then no order can be downloaded."


class AdminNotConfigured(NotConfigured):
    """`ADMIN_TOKEN` is not set: the admin routes are off."""

    slug = "admin-not-configured"
    title = "The admin routes are off"
    advice = "The operator must set `ADMIN_TOKEN`."
    example_detail = "The operator must set ADMIN_TOKEN to enable this route."


class LinksNotConfigured(NotConfigured):
    """`SIGNING_KEYS` is not set: the service cannot sign links."""

    slug = "links-not-configured"
    title = "Links are not configured"
    advice = "The operator must set `SIGNING_KEYS`."
    example_detail = "The operator must set SIGNING_KEYS to enable links."


class WebhooksNotConfigured(NotConfigured):
    """`WEBHOOK_SECRET` is not set: the service cannot verify the API's webhook requests."""

    slug = "webhooks-not-configured"
    title = "Webhooks are not configured"
    advice = "The operator must set `WEBHOOK_SECRET`."
    example_detail = "The operator must set WEBHOOK_SECRET to enable webhooks."


class SentryNotConfigured(NotConfigured):
    """The settings of the Sentry project are missing; `missing` lists them."""

    slug = "sentry-not-configured"
    title = "Reading from Sentry is not configured"
    advice = "The operator must set the settings in `missing`."
    example_detail = "The operator must set SENTRY_ORG."
    example_extensions: ClassVar[Mapping[str, Any]] = {"missing": ["SENTRY_ORG"]}


class AtCapacity(ServerError):
    """A concurrency limit is reached: `MAX_ARCHIVES`, `MAX_CONCURRENT_UPLOADS`, thumbnails or event streams."""

    status = 503
    slug = "at-capacity"
    title = "The service is at capacity"
    advice = "Repeat the request after the time in `Retry-After`, or send it to another replica."
    example_detail = "64 archives are being served already."
    has_retry_after = True


class Draining(ServerError):
    """The service is shutting down: running archives are completed, new ones are rejected."""

    status = 503
    slug = "draining"
    title = "The service is shutting down"
    advice = "Send the request to another replica, or repeat it after the time in `Retry-After`."
    example_detail = "The service is shutting down; send the request to another replica."
    has_retry_after = True


class InternalError(ServerError):
    """A fault of the service. The log has it under the request id."""

    status = 500
    slug = "internal-error"
    title = "The service failed"
    advice = "Report the request id to the operator."
    example_detail = "The service failed; the log has the cause under the request id."
