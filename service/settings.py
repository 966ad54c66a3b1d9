"""Every setting, read once from the environment and ``.env`` into one frozen object.

Only the composition root sees this object; parts receive plain values. Units are in the names.
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
# What cannot be guessed: 16 letters and digits have above 80 bits if they are random, and signing keys more.
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
        None, description="Key of the Autoenhance API. Without it the service starts but answers orders with 503."
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
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and logs it.")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="One more port, at the same address, for /metrics, which is then not on PORT, and /health*; "
        "0 takes a free one.",
    )
    public_url: str | None = Field(
        None,
        description="Address at which callers reach the service, such as https://zip.example.com; it begins the URLs "
        "that reports give. Without it they begin as the request did.",
    )
    service_api_keys: SecretList = Field(
        (),
        description="Comma-separated keys of callers; KEY:full may spend credits. Without one, everybody may download.",
    )
    service_api_key: SecretStr | None = Field(
        None,
        description="One more of SERVICE_API_KEYS, by the same rules, :full included: the name that the original "
        "service has for it.",
    )
    allow_full_quality: bool = Field(
        False, description="Let everybody who may download spend credits with preview=false, not only KEY:full."
    )
    admin_token: SecretStr | None = Field(
        None,
        description="Proves the operator, who may do everything; 16 characters or more. Without it the operator's "
        "routes are off.",
    )
    signing_keys: SecretList = Field(
        (), description="Comma-separated keys for links; the first signs, each verifies. Without one, no links."
    )
    max_link_seconds: int = Field(7 * 24 * 3600, ge=1, description="Longest time for which a link may be made.")
    session_ttl_seconds: int = Field(8 * 3600, ge=1, description="How long somebody who signed in stays so.")
    auth_failures_per_minute: int = Field(
        10, ge=1, description="Wrong keys from one address within a minute before it gets a 429."
    )
    trusted_proxy_hops: int = Field(
        0,
        ge=0,
        le=10,
        description="Proxies in front that append to X-Forwarded-For: so callers are told apart when they guess keys.",
    )
    allowed_origins: WordList = Field(
        (), description="Comma-separated origins, such as https://app.example.com, whose pages may read the answers."
    )
    sentry_dsn: SecretStr | None = Field(
        None, description="Sentry project that faults of the service are reported to; needs the extra 'sentry'."
    )
    sentry_auth_token: SecretStr | None = Field(
        None, description="Token with event:read, for /api/sentry/issues, which also needs the next two."
    )
    sentry_org: str | None = Field(None, description="Sentry organization, as in its URLs.")
    sentry_project: str | None = Field(None, description="Sentry project, as in its URLs.")
    sentry_api_base: str = Field("https://sentry.io", description="Where Sentry's API is; another one if self-hosted.")
    log_format: Literal["json", "console"] = Field("json", description="One JSON object a line, or text for people.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least level logged.")

    max_archives: int = Field(64, ge=1, description="Archives served at a time; further ones get a 503.")
    drain_seconds: float = Field(
        60, ge=0, description="After SIGTERM: how long running archives may take to finish before they are broken off."
    )
    request_header_timeout_seconds: float = Field(
        10, gt=0, description="Longest a new connection may take to send the head of its first request."
    )
    request_body_timeout_seconds: float = Field(
        30, gt=0, description="Longest a client may take to send the body of a request that is not an upload."
    )
    images_in_flight: int = Field(5, ge=1, le=64, description="Images fetched at a time for one archive.")
    read_ahead_bytes: int = Field(
        8 * MIB, ge=0, description="Bytes one archive may hold of images behind the one being written."
    )
    read_ahead_total_bytes: int = Field(64 * MIB, ge=0, description="The same for all archives of the process.")
    upstream_requests_per_second: float = Field(
        250, gt=0, description="Requests to the API a second, for the whole process; the API allows 300 per address."
    )
    max_concurrent_downloads: int = Field(
        64, ge=1, description="Images fetched at a time by the whole process, shared evenly; each archive has one."
    )
    image_attempts: int = Field(3, ge=1, le=20, description="Tries for one image before it is reported as failed.")
    image_timeout_seconds: float = Field(
        60, gt=0, description="Longest silence of the upstream: until the first byte, and between bytes."
    )
    connect_timeout_seconds: float = Field(10, gt=0, description="Longest wait for a connection to the upstream.")
    first_byte_seconds: float = Field(
        50, gt=0, description="Longest a caller waits for the first image byte; below the 60 s of common proxies."
    )
    give_up_after: int = Field(
        10, ge=1, description="Images in a row that fail because of the upstream before the rest is not tried."
    )
    client_stall_seconds: float = Field(60, gt=0, description="A client that takes no byte for this long is cut off.")
    max_images_per_order: int = Field(2000, ge=1, description="More images than this in one order are a 413.")

    max_upload_files: int = Field(100, ge=1, description="Photos taken in one upload; further ones are reported.")
    max_upload_bytes: int = Field(
        100 * MIB, ge=1, description="Largest photo taken; each waits on disk for its length."
    )
    max_concurrent_uploads: int = Field(
        4, ge=1, description="Uploads at a time; each has one photo on disk. Further ones get a 503."
    )

    wait_max_seconds: int = Field(600, ge=0, description="Longest wait= that a caller may ask for.")
    webhook_secret: SecretStr | None = Field(
        None,
        description="What the API sends as Authentication to /webhooks/autoenhance; 16 characters or more. Without it "
        "that is off.",
    )
    max_receipts: int = Field(1000, ge=1, description="Ended archives whose receipts are remembered.")
    receipt_ttl_seconds: float = Field(3600, gt=0, description="How long they are remembered.")

    allow_private_upstream: bool = Field(
        False, description="Allow plain http and loopback, link-local and private upstream addresses (the sandbox)."
    )
    upstream_allowed_hosts: WordList = Field(
        (), description="Comma-separated host names the upstream may redirect to; *.example.com for a domain."
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
            raise ValueError("a key is there twice")
        return value

    @field_validator("service_api_key")
    @classmethod
    def _check_service_key(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        # A value of blanks is refused, not taken for none: that would open the service.
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
            raise ValueError("must not be one of SERVICE_API_KEYS, whose holder would be the operator")
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
        """Return SERVICE_API_KEYS and SERVICE_API_KEY together, each as it is written there."""
        return (*self.service_api_keys, *([self.service_api_key] if self.service_api_key is not None else []))

    def secrets(self) -> list[str]:
        """Return every value that must never be shown, whatever it is for."""
        values = [one for _, value in self for one in (value if isinstance(value, tuple) else (value,))]
        return _bare(one for one in values if isinstance(one, SecretStr))


def _bare(keys: Iterable[SecretStr]) -> list[str]:
    return [one.get_secret_value().removesuffix(FULL_QUALITY) for one in keys]


def load_settings(**overrides: object) -> Settings:
    """Read the settings; ``overrides`` win over environment and ``.env``.

    Raises:
        SettingsError: something is invalid; every problem is listed, no value is shown.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # checked by pydantic at run time
    except UnicodeDecodeError:
        raise SettingsError([".env: it is not UTF-8 text"]) from None
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])).upper() or 'settings'}: {e['msg']}" for e in error.errors()]
        raise SettingsError(problems) from None


def describe_settings() -> list[tuple[str, str, str]]:
    """Return (environment name, default, meaning) of every setting, in the order of the file."""
    return [
        (name.upper(), _default_text(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def _default_text(value: object) -> str:
    if value is None or value == ():
        return "(none)"
    return str(value).lower() if isinstance(value, bool) else str(value)
