"""Query parameters of a download: one pydantic model for the parser, OpenAPI and the documents.

``ArchiveParameters`` holds every parameter with its type, bounds, default and meaning. ``parse_parameters`` parses a
query string strictly by it: a misspelt ``preview`` must never buy images.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from service.archive.writer import Layout
from service.errors import (
    EXAMPLE_UUID,
    InvalidArchiveId,
    InvalidOrderId,
    InvalidParameter,
    RepeatedParameter,
    UnknownParameter,
)
from service.model import ImageOptions

# The API states no upper bound for max_width; none of its pictures is wider than this.
MAX_WIDTH_PIXELS = 65_535
# No order is larger.
MAX_CREDITS = 1_000_000
# A day. WAIT_MAX_SECONDS is the smaller bound of a deployment.
MAX_WAIT_SECONDS = 86_400

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_INTEGER = re.compile(r"[0-9]{1,9}")
_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


class OnError(StrEnum):
    """What the final failure of one image does to the archive."""

    REPORT = "report"
    ABORT = "abort"


class ManifestMode(StrEnum):
    """When report and manifest are added: ``auto`` after a failure, ``always`` also without, with SHA-256 sums."""

    AUTO = "auto"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class ArchiveOptions:
    """The choices of an API client for one archive.

    Each id of ``only`` must be in the order, unless ``report_unknown``: then it is reported like an image that failed.
    """

    image: ImageOptions = field(default_factory=ImageOptions)
    only: tuple[str, ...] = ()
    report_unknown: bool = False
    on_error: OnError = OnError.REPORT
    manifest: ManifestMode = ManifestMode.AUTO
    layout: Layout = Layout.STREAMABLE
    max_credits: int | None = None
    archive_id: str | None = None
    wait: int = 0  # seconds; named like the parameter


def _parse_boolean(text: str) -> bool:
    value = _BOOLEANS.get(text.lower())
    if value is None:
        raise ValueError
    return value


def _parse_integer(text: str) -> int:
    # int() alone also takes signs, blanks, underscores and the digits of other scripts.
    if not _INTEGER.fullmatch(text):
        raise ValueError
    return int(text)


def _parse_decimal(text: str) -> float:
    if not _DECIMAL.fullmatch(text):
        raise ValueError
    return float(text)


def _check_uuid(text: str) -> str:
    if not _UUID.fullmatch(text):
        raise ValueError
    return text.lower()


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError
    return text


ImageFormat = Literal["jpeg", "png", "webp", "avif", "jxl"]
FORMATS: tuple[str, ...] = get_args(ImageFormat)
_Boolean = Annotated[bool, BeforeValidator(_parse_boolean)]
# Behind the bounds, which pydantic then applies to the number and not to the text.
_INTEGER_TEXT, _DECIMAL_TEXT = BeforeValidator(_parse_integer), BeforeValidator(_parse_decimal)
_Uuid = Annotated[str, AfterValidator(_check_uuid), WithJsonSchema({"type": "string", "format": "uuid"})]
_ImageId = Annotated[str, Field(min_length=1), AfterValidator(_check_printable)]
_ARCHIVE, _IMAGE = ArchiveOptions(), ImageOptions()
_IMAGE_OPTIONS = tuple(one.name for one in fields(ImageOptions))


class ArchiveParameters(BaseModel):
    """The query parameters of ``GET /orders/{order_id}/images``, read from text.

    Bounds are those that the API documents: ``quality`` in /images/downloading-images/original, the others in its
    schema. Defaults are those of ``ArchiveOptions`` and ``ImageOptions``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: ImageFormat = Field(_IMAGE.format, validate_default=True, description="Image format.", examples=["webp"])
    quality: Annotated[int, Field(ge=1, le=90), _INTEGER_TEXT] | None = Field(
        _IMAGE.quality, description="Image quality. Default: the API's own.", examples=[80]
    )
    preview: _Boolean = Field(
        _IMAGE.preview, description="`true`: free preview. `false`: full quality, which **spends credits**."
    )
    dev_mode: _Boolean = Field(
        _IMAGE.dev_mode,
        description="`true`: send `x-dev-mode` to the API. No credits are spent; images are watermarked.",
    )
    max_width: Annotated[int, Field(ge=1, le=MAX_WIDTH_PIXELS), _INTEGER_TEXT] | None = Field(
        _IMAGE.max_width, description="Maximum width in pixels. Passed to the API.", examples=[1920]
    )
    scale: Annotated[float, Field(gt=0, le=1), _DECIMAL_TEXT] | None = Field(
        _IMAGE.scale, description="Scale factor. Passed to the API.", examples=[0.5]
    )
    watermark: _Boolean | None = Field(
        _IMAGE.watermark, description="Whether images carry a watermark. Default: the API's own."
    )
    finetune: _Boolean | None = Field(
        _IMAGE.finetune, description="Whether images are fine-tuned. Default: the API's own."
    )
    on_error: OnError = Field(
        _ARCHIVE.on_error,
        description="`report`: continue and list failed images in the report. `abort`: all images or none; a failure "
        "after the first byte breaks the connection.",
    )
    manifest: ManifestMode = Field(
        _ARCHIVE.manifest,
        description="`auto`: add report and manifest only if an image failed. `always`: add them to every archive, "
        "with the SHA-256 of each image.",
    )
    layout: Layout = Field(
        _ARCHIVE.layout,
        description="`streamable`: programs can unpack the archive while they receive it. `stored`: images are stored "
        "unmodified in the archive.",
    )
    max_credits: Annotated[int, Field(ge=0, le=MAX_CREDITS), _INTEGER_TEXT] | None = Field(
        _ARCHIVE.max_credits,
        description="With full quality: respond with 402, and buy nothing, if the download would buy more images.",
        examples=[20],
    )
    archive_id: _Uuid | None = Field(
        _ARCHIVE.archive_id,
        description="Id of this download, chosen by the client to watch its events. Only a download that was "
        "aborted may be repeated with the same id.",
    )
    wait: Annotated[int, Field(ge=0, le=MAX_WAIT_SECONDS), _INTEGER_TEXT] = Field(
        _ARCHIVE.wait,
        description="Seconds to wait for images still being processed; ready images are sent immediately. The setting "
        "`WAIT_MAX_SECONDS` limits it.",
        examples=[300],
    )
    only: tuple[_ImageId, ...] = Field(
        _ARCHIVE.only, description="Image id to include. Repeatable, unlike every other parameter."
    )

    def options(self) -> ArchiveOptions:
        """Return the parameters as options of the archive and of its images."""
        values = dict(self)
        image = ImageOptions(**{name: values.pop(name) for name in _IMAGE_OPTIONS})
        return ArchiveOptions(image, **values)


PARAMETERS = tuple(ArchiveParameters.model_fields)
_REPEATABLE = frozenset({"only"})


def _query_schemas() -> Mapping[str, Mapping[str, Any]]:
    """Return the JSON schemas of the parameters. A query has no null: a parameter without a default may be omitted."""
    document = ArchiveParameters.model_json_schema()
    schemas = {}
    for name, described in document["properties"].items():
        schema = {key: value for key, value in described.items() if value not in (None, [])}
        alternative: Mapping[str, Any] = next(iter(schema.pop("anyOf", ())), {})
        reference = schema.pop("$ref", "").rpartition("/")[2]
        target = document["$defs"][reference] if reference else {}
        merged = {**target, **alternative, **schema}
        schemas[name] = {key: merged[key] for key in merged if key not in {"title", "description", "examples"}}
    return MappingProxyType(schemas)


# By name, in the order of the model; without title, description and examples.
QUERY_SCHEMAS = _query_schemas()


def allowed_values(name: str) -> str:
    """Return what a parameter's value may be, in words that complete "must be"."""
    match QUERY_SCHEMAS[name]:
        case {"enum": words}:
            return f"one of {', '.join(words)}"
        case {"type": "boolean"}:
            return "true, false, 1 or 0"
        case {"type": "integer", "minimum": low, "maximum": high}:
            return f"a whole number from {low} to {high}"
        case {"type": "number", "exclusiveMinimum": low, "maximum": high}:
            return f"a number above {low:g} and up to {high:g}, such as 0.5"
        case {"format": "uuid"}:
            return "a UUID"
    return "the id of an image of the order"


def parse_parameters(pairs: Iterable[tuple[str, str]]) -> ArchiveOptions:
    """Parse the (name, value) pairs of a query string.

    Booleans are ``true``, ``false``, ``1`` and ``0``; whole numbers are ASCII digits. Nothing is corrected or ignored.

    Raises:
        UnknownParameter, RepeatedParameter, InvalidParameter: the error names the parameter and what is allowed.
    """
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name in _REPEATABLE:
            values.setdefault(name, {})[text] = None  # keeps the order, drops duplicates
        elif name not in ArchiveParameters.model_fields:
            raise UnknownParameter(name, f"There is no parameter {name!r}; known are {', '.join(PARAMETERS)}.")
        elif name in values:
            raise RepeatedParameter(name, f"The parameter {name!r} is given more than once.")
        else:
            values[name] = text
    values |= {name: tuple(values[name]) for name in _REPEATABLE & values.keys()}
    try:
        return ArchiveParameters.model_validate(values).options()
    except ValidationError as error:
        wrong = str(error.errors(include_url=False, include_context=False)[0]["loc"][0])
        raise InvalidParameter(wrong, f"{wrong!r} must be {allowed_values(wrong)}.") from None


def check_order_id(text: str) -> str:
    """Return the order id.

    Raises:
        InvalidOrderId: it is not a UUID in its usual form (RFC 9562 section 4).
    """
    if not _UUID.fullmatch(text):
        raise InvalidOrderId(f"The order id must be a UUID such as {EXAMPLE_UUID}.")
    return text


def check_archive_id(text: str) -> str:
    """Return the archive id in lower case.

    Raises:
        InvalidArchiveId: it is not a UUID in its usual form (RFC 9562 section 4).
    """
    if not _UUID.fullmatch(text):
        raise InvalidArchiveId(f"The archive id must be a UUID such as {EXAMPLE_UUID}.")
    return text.lower()
