"""Request and response bodies as pydantic models, and the component schemas generated from them.

The models describe; they do not run. Handlers build their documents without them, and the tests validate every real
response. All are exact: an unknown key fails. ``download_schemas`` has the models of orders, downloads and links.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    WithJsonSchema,
    create_model,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from service.errors import PROBLEM_BASE, concrete_errors
from service.model import Reason
from service.web.auth.credentials import Role
from service.web.uploads.create_order import ENHANCEMENT_OPTIONS, MAX_ORDER_NAME_CHARACTERS, REJECTION_DETAILS
from service.web.uploads.form_parts import FILES, ORDER_NAME

_REFERENCE = "#/components/schemas/{model}"
# The default of a member that is either absent or not null.
ABSENT: Any = None


def one_of(words: Iterable[str]) -> WithJsonSchema:
    """Return the schema of a string that is one of these words."""
    return WithJsonSchema({"type": "string", "enum": list(words)})


Uuid = Annotated[str, WithJsonSchema({"type": "string", "format": "uuid"})]
ReasonValue = Annotated[str, one_of(reason.value for reason in Reason)]
_UploadReason = Annotated[str, one_of([*REJECTION_DETAILS, *(reason.value for reason in Reason)])]
_RoleText = Annotated[str, one_of(role.word for role in Role)]
_ProblemType = Annotated[str, one_of(PROBLEM_BASE + error.slug for error in concrete_errors())]


class Exact(BaseModel):
    """A body with these members and no others."""

    model_config = ConfigDict(extra="forbid")


class FailedImage(Exact):
    """An image that failed, with the reason."""

    image_id: str
    name: str
    reason: ReasonValue
    detail: str
    upstream_status: int | None


class UploadedFile(Exact):
    """The outcome of one uploaded file."""

    file: str
    image_id: str | None
    outcome: Literal["uploaded", "failed"]
    reason: _UploadReason | None
    detail: str | None
    bytes: NonNegativeInt


class Problem(Exact):
    """A problem document (RFC 9457). The service explains each `type` at its address."""

    type: _ProblemType
    title: str
    status: int
    detail: str = Field(description="What went wrong in this request.")
    instance: str = Field(description="`urn:request:` and the id of the request.")
    parameter: str = Field(ABSENT, description="The query parameter that is wrong.")
    image_id: str = Field(ABSENT, description="The image id that the order does not have.")
    reason: ReasonValue = Field(ABSENT, description="Why the thumbnail is not available.")
    upstream_status: int | None = Field(ABSENT, description="Status of the API's or the storage's response.")
    allowed: list[str] = Field(ABSENT, description="Methods that the path supports.")
    credits: int = Field(ABSENT, description="Images that the download would buy.")
    max_credits: int = Field(ABSENT, description="Images that the request allows to buy.")
    images: int | list[UploadedFile] = Field(
        ABSENT, description="With `too-many-images` their number; of an interrupted upload the outcome of each file."
    )
    max_images: int = Field(ABSENT, description="Maximum number of images in one archive.")
    failures: list[FailedImage] | list[UploadedFile] = Field(
        ABSENT, description="Each image or file that failed, with the reason."
    )
    order_id: str | None = Field(ABSENT, description="The order that an upload has created.")
    refused: dict[str, Any] = Field(
        ABSENT,
        description="With `archive-not-found`: the problem with which this replica rejected the download at capacity. "
        "Another replica may have accepted it.",
    )
    missing: list[str] = Field(ABSENT, description="Settings that are not set.")


class NewOrder(Exact):
    """A new order with the outcome of each uploaded file."""

    order_id: str
    name: str
    images: list[UploadedFile]
    uploaded: NonNegativeInt
    failed: NonNegativeInt
    download: str = Field(description="URL of the download, once the images are enhanced.")


class Session(Exact):
    """The role of the client."""

    role: _RoleText | None = Field(
        description="`download`: previews. `full`: also full quality. `admin`: everything. `null`: nothing."
    )
    key_required: bool
    admin_enabled: bool
    links_enabled: bool
    signed_in: bool = Field(description="Whether the request has a session.")


class StartedSession(Session):
    """A new session."""

    expires_at: NonNegativeInt = Field(description="Seconds since 1970.")


class Credentials(Exact):
    """The key to sign in with."""

    key: str = Field(json_schema_extra={"format": "password"})


class InProgress(Exact):
    """Gauges of the process."""

    archives: NonNegativeInt
    read_ahead_bytes: NonNegativeInt
    draining: bool
    upstream_failing: bool


class Counters(Exact):
    """Counts since the start; `archives` by outcome, `images` by outcome and reason."""

    archives: dict[str, NonNegativeInt]
    archive_bytes: NonNegativeInt
    images: dict[str, NonNegativeInt]
    image_bytes: NonNegativeInt
    image_retries: NonNegativeInt
    credits_spent: NonNegativeInt


class RecentError(Exact):
    """A fault of the service or of the upstream."""

    time: AwareDatetime
    request_id: str
    event: str
    detail: str


class Statistics(Exact):
    """Counts and limits of the process."""

    version: str
    uptime_seconds: NonNegativeFloat
    in_progress: InProgress
    counters: Counters
    limits: dict[str, float]
    recent_errors: list[RecentError] = Field(ABSENT, description="With the admin token only; the newest first.")


class Liveness(Exact):
    """The event loop responds."""

    status: Literal["ok"]


class Health(Liveness):
    """The service runs."""

    api_key_configured: bool


class ReadinessCheck(Exact):
    """Whether the service accepts downloads."""

    status: Literal["ok", "unready"]
    reasons: list[Literal["no_api_key", "draining", "upstream_failing"]]


class ReasonMessage(Exact):
    """The meaning of a reason, for people."""

    text: str
    advice: str


class PageConfig(Exact):
    """What the page needs to know of the service."""

    version: str
    api_key_configured: bool
    demo_order_id: str | None = Field(description="Set by the sandbox only.")
    wait_max_seconds: NonNegativeInt
    max_upload_files: NonNegativeInt
    max_upload_bytes: NonNegativeInt
    reasons: dict[str, ReasonMessage] = Field(
        description="Meaning of each reason of a failed image, and whether a retry helps."
    )


class SentryIssue(Exact):
    """An unresolved issue in Sentry."""

    id: str
    short_id: str | None
    title: str
    culprit: str | None
    level: str | None
    count: NonNegativeInt | None
    users: NonNegativeInt | None
    first_seen: str | None
    last_seen: str | None
    permalink: str | None


class SentryIssues(Exact):
    """The newest unresolved issues of the Sentry project."""

    issues: list[SentryIssue]


def _choice(words: Iterable[str]) -> Any:
    choices = list(words)
    return bool if set(choices) == {"true", "false"} else Annotated[str, one_of(choices)]


_Photo = Annotated[str, WithJsonSchema({"type": "string", "format": "binary", "contentMediaType": "image/jpeg"})]
_UPLOAD_FIELDS: dict[str, Any] = {
    ORDER_NAME: (
        Annotated[str, Field(max_length=MAX_ORDER_NAME_CHARACTERS)],
        Field(ABSENT, description="Name of the order."),
    ),
    **{name: (_choice(words), ABSENT) for name, words in ENHANCEMENT_OPTIONS.items()},
    FILES: (list[_Photo], Field(min_length=1, description="The photos, after all other fields.")),
}
UploadForm = create_model("UploadForm", __base__=Exact, **_UPLOAD_FIELDS)

MODELS: tuple[type[BaseModel], ...] = (
    *(Problem, NewOrder, Session, StartedSession, Credentials, UploadForm, Statistics, Liveness, Health),
    *(ReadinessCheck, PageConfig, SentryIssues),
)


class _ComponentSchemas(GenerateJsonSchema):
    """Schemas without generated titles, and without ``null`` as the default of a member that may be absent."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        document = super().model_schema(schema)
        document.pop("title", None)
        return document

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if schema.get("default", ...) is ABSENT:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)


def component_schemas(models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """Return the schemas of models and of the models that they refer to, by name."""
    _, document = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REFERENCE, schema_generator=_ComponentSchemas
    )
    schemas: dict[str, Any] = document["$defs"]
    return schemas


def reference(model: type[BaseModel]) -> Mapping[str, str]:
    """Return the reference to a model's schema."""
    return {"$ref": _REFERENCE.format(model=model.__name__)}
