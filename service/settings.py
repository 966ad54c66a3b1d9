"""Settings, read once from the environment and ``.env`` into one frozen object.

Only the composition root sees this object; other parts receive plain values. Units are in the names.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.errors import SettingsError

MIB = 1024 * 1024
WordList = Annotated[tuple[str, ...], NoDecode]
SecretList = Annotated[tuple[SecretStr, ...], NoDecode]
# Against brute force: 16 random letters and digits have more than 80 bits of entropy; signing keys have more.
MIN_KEY_CHARACTERS, MIN_SIGNING_KEY_CHARACTERS = 16, 32
FULL_QUALITY = ":full"


class Settings(BaseSettings):
    """The service's configuration. Field names are the environment variables' names in lower case."""

    model_config = SettingsConfigDict(
        frozen=True,
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        env_ignore_empty=True,
        str_strip_whitespace=True,
        hide_input_in_errors=True,
    )

    autoenhance_api_key: SecretStr | None = Field(
        None, description="Key of the Autoenhance API. Without it the service starts, but orders get a 503."
    )
    autoenhance_api_base: str = Field(
        "https://api.autoenhance.ai/v3", description="Base URL of the API, with its version path."
    )
    autoenhance_api_version: str = Field(
        "2025-05-08",
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        description="Sent as x-api-version, so that the account's default cannot change response shapes.",
    )
    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - a container must be reachable
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one and logs it.")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Separate port, at the same address, for /metrics, which is then not on PORT, and /health*; "
        "0 picks a free one.",
    )
    public_url: str | None = Field(
        None,
        description="Base URL at which clients reach the service, such as https://zip.example.com, for the URLs in "
        "reports and links. Without it they use the scheme of the request, http behind a proxy that ends TLS.",
    )
    service_api_keys: SecretList = Field(
        (),
        description="Comma-separated API keys of clients, each of 16 characters or more; KEY:full may spend credits. "
        "Without any, every client may download.",
    )
    service_api_key: SecretStr | None = Field(
        None,
        description="One more of SERVICE_API_KEYS, by the same rules, :full included: the setting of the original "
        "service.",
    )
    allow_full_quality: bool = Field(
        False, description="Let every client that may download spend credits with preview=false, not only KEY:full."
    )
    admin_token: SecretStr | None = Field(
        None,
        description="Admin bearer token; grants every permission; 16 characters or more. Without it the admin "
        "endpoints are off.",
    )
    signing_keys: SecretList = Field(
        (),
        description="Comma-separated keys that sign links, each of 32 characters or more; the first signs, each "
        "verifies. Without any, no links.",
    )
    max_link_seconds: int = Field(7 * 24 * 3600, ge=1, description="Longest time to live of a link.")
    session_ttl_seconds: int = Field(8 * 3600, ge=1, description="How long a session on the page lasts.")
    auth_failures_per_minute: int = Field(
        10, ge=1, description="Wrong keys from one address within a minute, after which it gets a 429."
    )
    trusted_proxy_hops: int = Field(
        0,
        ge=0,
        le=10,
        description="Number of proxies in front that append to X-Forwarded-For, for the rate limit of wrong keys. "
        "With 0 behind a proxy, one attacker locks all other clients out for a minute.",
    )
    allowed_origins: WordList = Field(
        (), description="Comma-separated origins, such as https://app.example.com, whose pages may read responses."
    )
    sentry_dsn: SecretStr | None = Field(
        None, description="Sentry project that errors of the service are reported to; needs the extra 'sentry'."
    )
    sentry_auth_token: SecretStr | None = Field(
        None, description="Token with event:read, for /api/sentry/issues, which also needs the next two."
    )
    sentry_org: str | None = Field(None, description="Sentry organization, as in its URLs.")
    sentry_project: str | None = Field(None, description="Sentry project, as in its URLs.")
    sentry_api_base: str = Field(
        "https://sentry.io", description="Base URL of Sentry's API; another one if self-hosted."
    )
    log_format: Literal["json", "console"] = Field("json", description="One JSON object a line, or text for people.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Minimum level that is logged.")

    max_archives: int = Field(64, ge=1, description="Concurrent archives; further ones get a 503.")
    drain_seconds: float = Field(
        60,
        ge=0,
        description="After SIGTERM: how long running archives may take to finish before they are aborted. A "
        "second signal aborts them at once.",
    )
    request_header_timeout_seconds: float = Field(
        10, gt=0, description="Longest a new connection may take to send the headers of its first request."
    )
    request_body_timeout_seconds: float = Field(
        30,
        gt=0,
        description="Longest a client may take to send a request body that is not an upload: a sign-in, a link, a "
        "webhook, a list of images.",
    )
    images_in_flight: int = Field(5, ge=1, le=64, description="Concurrent image downloads of one archive.")
    max_images_in_flight: int = Field(
        32,
        ge=1,
        le=256,
        description="How far IMAGES_IN_FLIGHT may grow while the upstream is slow to respond.",
    )
    read_ahead_bytes: int = Field(
        8 * MIB, ge=0, description="Bytes one archive may buffer of images behind the one being written."
    )
    read_ahead_total_bytes: int = Field(64 * MIB, ge=0, description="The same for all archives of the process.")
    upstream_requests_per_second: float = Field(
        250, gt=0, description="Requests to the API a second, for the whole process; the API allows 300 per address."
    )
    max_concurrent_downloads: int = Field(
        64,
        ge=1,
        description="Concurrent image downloads of the whole process, shared evenly; each archive has at least one.",
    )
    image_attempts: int = Field(
        3, ge=1, le=20, description="Attempts for one image, or an order look-up, before it has failed."
    )
    image_timeout_seconds: float = Field(
        60, gt=0, description="Idle timeout of the upstream: until the first byte, and between bytes."
    )
    connect_timeout_seconds: float = Field(10, gt=0, description="Timeout of connecting to the upstream.")
    first_byte_seconds: float = Field(
        50,
        gt=0,
        description="Longest a client waits for the first image byte, order look-up included; below the 60 s of common "
        "proxies.",
    )
    give_up_after: int = Field(
        10,
        ge=1,
        description="Consecutive images that fail because of the upstream, after which the rest is not attempted.",
    )
    client_stall_seconds: float = Field(
        60, gt=0, description="A client that reads nothing for this long is disconnected."
    )
    max_images_per_order: int = Field(2000, ge=1, description="More images than this in one archive are a 413.")

    max_upload_files: int = Field(100, ge=1, description="Photos accepted in one upload; further ones are reported.")
    max_upload_bytes: int = Field(
        100 * MIB,
        ge=1,
        description="Largest photo accepted; each is spooled to disk, because storage needs its length.",
    )
    max_concurrent_uploads: int = Field(
        4, ge=1, description="Concurrent uploads; each has one photo on disk. Further ones get a 503."
    )

    wait_max_seconds: int = Field(600, ge=0, description="Largest value of the parameter wait.")
    webhook_secret: SecretStr | None = Field(
        None,
        description="Secret that the API sends as Authentication to /webhooks/autoenhance; 16 characters or more. "
        "Without it webhooks are off.",
    )
    max_receipts: int = Field(1000, ge=1, description="Finished archives whose receipts are kept.")
    receipt_ttl_seconds: float = Field(3600, gt=0, description="How long they are kept.")

    allow_private_upstream: bool = Field(
        False, description="Allow plain http and loopback, link-local and private upstream addresses (the sandbox)."
    )
    upstream_allowed_hosts: WordList = Field(
        (),
        description="Comma-separated host names the upstream may redirect to; *.example.com for a domain. Without "
        "any, every public one.",
    )

    @field_validator("upstream_allowed_hosts", "allowed_origins", mode="before")
    @classmethod
    def _split_words(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(word.strip().lower() for word in value.split(",") if word.strip())
        return value

    @field_validator("autoenhance_api_base", "public_url", "sentry_api_base")
    @classmethod
    def _check_base(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be an http(s) URL without query, such as https://api.autoenhance.ai/v3")
        _ = parts.port  # raises ValueError if there is no such port
        if parts.username or parts.password:
            raise ValueError("must not contain a user name or password")
        return value.rstrip("/")

    @field_validator("service_api_keys", "signing_keys", mode="before")
    @classmethod
    def _split_secrets(cls, value: object) -> object:
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value

    @field_validator("service_api_keys")
    @classmethod
    def _check_service_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        keys = _bare(value)
        if any(len(key) < MIN_KEY_CHARACTERS or not re.fullmatch(r"[!-9;-~]+", key) for key in keys):
            raise ValueError(
                f"each key must have at least {MIN_KEY_CHARACTERS} ASCII characters, no blank and no colon"
            )
        if len(set(keys)) != len(keys):
            raise ValueError("a key is listed twice")
        return value

    @field_validator("service_api_key")
    @classmethod
    def _check_service_key(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        # A blank value is rejected, not ignored: that would open the service.
        if value is not None:
            cls._check_service_keys((*info.data.get("service_api_keys", ()), value))
        return value

    @field_validator("admin_token")
    @classmethod
    def _check_admin_token(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        token = value.get_secret_value() if value is not None else ""
        if token and len(token) < MIN_KEY_CHARACTERS:
            raise ValueError(f"must have at least {MIN_KEY_CHARACTERS} characters")
        single = info.data.get("service_api_key")
        if token in _bare((*info.data.get("service_api_keys", ()), *([single] if single else []))):
            raise ValueError("must not be one of SERVICE_API_KEYS, whose holder would become an admin")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _check_webhook_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and 0 < len(value.get_secret_value()) < MIN_KEY_CHARACTERS:
            raise ValueError(f"must have at least {MIN_KEY_CHARACTERS} characters")
        return value

    @field_validator("signing_keys")
    @classmethod
    def _check_signing_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(one.get_secret_value()) < MIN_SIGNING_KEY_CHARACTERS for one in value):
            raise ValueError(f"each key must have at least {MIN_SIGNING_KEY_CHARACTERS} characters")
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(r"https?://[a-z0-9.\[\]:-]+", origin) for origin in value):
            raise ValueError("an origin is scheme, host and port only, such as https://app.example.com")
        return value

    @field_validator("metrics_port")
    @classmethod
    def _check_metrics_port(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and value == info.data.get("port"):
            raise ValueError("must not be PORT, which serves the same")
        return value

    @field_validator("autoenhance_api_key", "admin_token", "sentry_dsn", "sentry_auth_token", "webhook_secret")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value():
            return None
        if value is not None and not (value.get_secret_value().isascii() and value.get_secret_value().isprintable()):
            raise ValueError("must be printable ASCII: it becomes an HTTP header")
        return value

    def all_service_keys(self) -> tuple[SecretStr, ...]:
        """Return SERVICE_API_KEYS and SERVICE_API_KEY together, with their suffixes."""
        return (*self.service_api_keys, *([self.service_api_key] if self.service_api_key is not None else []))

    def secrets(self) -> list[str]:
        """Return every secret value, for redaction."""
        values = [one for _, value in self for one in (value if isinstance(value, tuple) else (value,))]
        return _bare(one for one in values if isinstance(one, SecretStr))


def _bare(keys: Iterable[SecretStr]) -> list[str]:
    return [one.get_secret_value().removesuffix(FULL_QUALITY) for one in keys]


def load_settings(**overrides: object) -> Settings:
    """Read the settings; ``overrides`` win over environment and ``.env``.

    Raises:
        SettingsError: lists every invalid setting, without its value.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # checked by pydantic at run time
    except UnicodeDecodeError:
        raise SettingsError([".env: it is not UTF-8 text"]) from None
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])).upper() or 'settings'}: {e['msg']}" for e in error.errors()]
        raise SettingsError(problems) from None


def describe_settings() -> list[tuple[str, str, str]]:
    """Return (environment variable, default, description) of every setting, in the order of the file."""
    return [
        (name.upper(), _default_text(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def _default_text(value: object) -> str:
    if value is None or value == ():
        return "(none)"
    return str(value).lower() if isinstance(value, bool) else str(value)
