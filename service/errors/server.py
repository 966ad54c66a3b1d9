"""The service itself cannot do it now: its operator must act, or the caller wait."""

from service.errors.base import ServiceError


class ServerError(ServiceError):
    """The service itself cannot do it now."""


class ApiKeyNotConfigured(ServerError):
    """The service has no API key, so it can fetch nothing."""

    status = 503
    slug = "api-key-not-configured"
    title = "The service has no Autoenhance API key"


class LinksNotConfigured(ServerError):
    """The service has no key to sign links with."""

    status = 503
    slug = "links-not-configured"
    title = "Links are not configured"


class SentryNotConfigured(ServerError):
    """The service does not know which Sentry project is its own; ``missing`` names the settings."""

    status = 503
    slug = "sentry-not-configured"
    title = "Reading from Sentry is not configured"


class AtCapacity(ServerError):
    """As many archives are being served as the operator allows; try again later, or another replica."""

    status = 503
    slug = "at-capacity"
    title = "The service is at capacity"


class Draining(ServerError):
    """The service is about to stop: archives that run are finished, new ones are refused."""

    status = 503
    slug = "draining"
    title = "The service is about to stop"


class InternalError(ServerError):
    """A fault of the service; the request id finds it in the log."""

    status = 500
    slug = "internal-error"
    title = "The service failed"
