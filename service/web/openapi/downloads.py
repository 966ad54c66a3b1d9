"""Operations on orders and their archives."""

from typing import Any

from service.archive.plan import FORMATS
from service.errors import (
    ApiKeyNotConfigured,
    ArchiveIdInUse,
    ArchiveNotFound,
    ArchiveNotResumable,
    AtCapacity,
    AuthenticationRequired,
    CreditsExceeded,
    Draining,
    FirstByteTimeout,
    FullQualityNotAllowed,
    ImageNotInOrder,
    InvalidArchiveId,
    InvalidBody,
    InvalidOrderId,
    InvalidParameter,
    LinkExpired,
    LinkInvalid,
    LinksNotConfigured,
    NoImagesAvailable,
    OrderEmpty,
    OrderNotFound,
    OrderNotReady,
    RepeatedParameter,
    RequestBodyTimeout,
    ThumbnailUnavailable,
    TooManyAuthFailures,
    TooManyImages,
    UnknownParameter,
    UpstreamFailed,
    UpstreamInvalidResponse,
    UpstreamTimeout,
    UpstreamUnauthorized,
)
from service.web.downloads.archive import TRAILERS
from service.web.openapi.operation import KEY, KEY_OR_LINK, Operation, Success, json_content
from service.web.openapi.parameters import (
    ARCHIVE_ID,
    EXAMPLE_IMAGE,
    EXAMPLE_ORDER,
    LINK_TOKEN,
    ORDER_ID,
    TRACING,
    download_parameters,
    header_parameter,
)
from service.web.openapi.schemas import exactly, listed, ref
from service.web.orders.thumbnails import MAX_WIDTH_PIXELS

HERE = "http://localhost:8000"
_ARCHIVE_HEADERS = ("Content-Disposition", "X-Total-Images", "X-Archive-Id", "X-Accel-Buffering")
_KEY_PROBLEMS = (AuthenticationRequired, TooManyAuthFailures)
_PARAMETER_PROBLEMS = (InvalidOrderId, InvalidParameter, UnknownParameter, RepeatedParameter)
_LOOK_UP_PROBLEMS = (
    OrderNotFound,
    UpstreamFailed,
    UpstreamInvalidResponse,
    UpstreamUnauthorized,
    ApiKeyNotConfigured,
    UpstreamTimeout,
)
_HEAD_PROBLEMS = (
    *_PARAMETER_PROBLEMS,
    ImageNotInOrder,
    *_KEY_PROBLEMS,
    CreditsExceeded,
    FullQualityNotAllowed,
    LinkInvalid,
    LinkExpired,
    *_LOOK_UP_PROBLEMS,
    ArchiveNotResumable,
    OrderEmpty,
    OrderNotReady,
    TooManyImages,
    NoImagesAvailable,
    AtCapacity,
    Draining,
)
_DOWNLOAD_PROBLEMS = (*_HEAD_PROBLEMS, ArchiveIdInUse, FirstByteTimeout)
_DOWNLOAD = f"""\
The archive is streamed: it begins as soon as the first image has begun to arrive, and images are sent while they are
fetched. What cannot be had is listed, with the reason, in `_download_report.txt` and `_manifest.json` inside the
archive.

```sh
curl --fail-with-body --remote-name --remote-header-name "{HERE}/orders/{EXAMPLE_ORDER}/images?quality=80"
```

`preview=false` **spends credits**: one for each image that has not been bought before. Unknown and repeated parameters
are refused, so that a misspelt `preview` never buys anything.

After the first byte there is no status left to change: if the archive cannot be finished truthfully, the connection is
broken (`curl` exits with 18). There is no `Content-Length`, and no ETag. An archive cannot be resumed: a `Range` that
begins behind the first byte, such as `curl -C -` and `wget` send, is a 412, and so is an entity tag in `If-Match`:
start over without them. Other forms of `Range`, and any `Range` with `If-Range`, get the whole archive."""
_TRAILER_WORDS = {
    "X-Downloaded": "Number of images that are in the archive.",
    "X-Failed": "Number of images that are not.",
}
_ARCHIVE = Success(
    200,
    "The archive. Behind the body come the trailers `X-Downloaded` and `X-Failed` (HTTP/1.1), with the number of "
    "images that are in it and that are not.",
    {"application/zip": {}},
    (*_ARCHIVE_HEADERS, "Trailer"),
    {
        "x-trailers": {
            name: {"description": _TRAILER_WORDS[name], "schema": {"type": "integer", "minimum": 0}}
            for name in TRAILERS
        }
    },
)
_EVENTS = f"""\
Server-sent events: first the whole receipt, then every change, then the end. Open it before, during or after the
download: an id that nobody has used yet is waited for, for 10 seconds.

```sh
id=$(python3 -c 'import uuid; print(uuid.uuid4())')
curl --no-buffer "{HERE}/archives/$id/events" &
curl --output images.zip "{HERE}/orders/{EXAMPLE_ORDER}/images?archive_id=$id"
```

| Event | Data |
| --- | --- |
| `snapshot` | `Receipt`: everything |
| `image` | `ImageChange`: one image has begun, ended or appeared |
| `archive` | `ReceiptSummary`: state or bytes have changed |
| `end` | `ReceiptSummary`: nothing changes any more |

Each change has its number as `id`; a client that comes back with `Last-Event-ID` gets what it missed. Lines that begin
with a colon only show that the connection lives."""
_ONLY = exactly({"only": {**listed({"type": "string"}), "minItems": 1}})
_MISSING_BODY: dict[str, Any] = {
    "required": True,
    "description": "The `_manifest.json` of an earlier archive, or a list of image ids.",
    "content": {
        **json_content(
            {
                "anyOf": [
                    {
                        "type": "object",
                        "title": "Manifest",
                        "required": ["missing"],
                        "properties": {"missing": listed({"type": "string"}), "order_id": {"type": "string"}},
                    },
                    _ONLY,
                ]
            },
            examples={
                "list": {"summary": "A list of images", "value": {"only": [EXAMPLE_IMAGE]}},
                "manifest": {
                    "summary": "A manifest, shortened",
                    "value": {"order_id": EXAMPLE_ORDER, "missing": [EXAMPLE_IMAGE]},
                },
            },
        ),
        "application/x-www-form-urlencoded": {"schema": _ONLY},
    },
}
_LINK_BODY: dict[str, Any] = {
    "required": False,
    "content": json_content(
        exactly(
            {
                "parameters": {
                    "type": "object",
                    "description": "Query parameters of the download, such as `quality`. Not `archive_id`.",
                    "additionalProperties": True,
                },
                "expires_in_seconds": {"type": "integer", "minimum": 1, "description": "Left out: a day."},
            },
            optional=("parameters", "expires_in_seconds"),
        ),
        example={"parameters": {"format": "webp", "quality": 80}, "expires_in_seconds": 3600},
    ),
}

OPERATIONS = (
    Operation(
        "get",
        "/orders/{order_id}",
        "getOrder",
        "Orders",
        "Look at an order before downloading it",
        "One look-up; no image is touched, and nothing is bought. Takes the parameters of the download.\n\n"
        f'```sh\ncurl "{HERE}/orders/{EXAMPLE_ORDER}?preview=false"\n```\n\n'
        "`credits.to_buy` is what a download with these parameters would cost.",
        (Success(200, "The order.", json_content(ref("Order"))),),
        (*_PARAMETER_PROBLEMS, ImageNotInOrder, *_KEY_PROBLEMS, *_LOOK_UP_PROBLEMS),
        (ORDER_ID, *download_parameters()),
        security=KEY,
    ),
    Operation(
        "get",
        "/orders/{order_id}/images",
        "downloadOrder",
        "Orders",
        "Download all images of an order as one ZIP",
        _DOWNLOAD,
        (_ARCHIVE,),
        _DOWNLOAD_PROBLEMS,
        (ORDER_ID, *download_parameters(), LINK_TOKEN, *TRACING),
        security=KEY_OR_LINK,
    ),
    Operation(
        "head",
        "/orders/{order_id}/images",
        "probeOrder",
        "Orders",
        "Ask for the status and headers of a download",
        "The same after one look at the order. No image is opened, and nothing is bought.",
        (Success(200, "There is something to download.", headers=_ARCHIVE_HEADERS),),
        _HEAD_PROBLEMS,
        (ORDER_ID, *download_parameters(), LINK_TOKEN, *TRACING),
        security=KEY_OR_LINK,
    ),
    Operation(
        "post",
        "/orders/{order_id}/images",
        "downloadMissing",
        "Orders",
        "Download just what an earlier archive lacks, or a long list of images",
        "Send the manifest that was found in an earlier archive: those that it lists as missing are downloaded.\n\n"
        "```sh\nunzip -p images.zip _manifest.json |\n"
        f"  curl --json @- --output rest.zip {HERE}/orders/{EXAMPLE_ORDER}/images\n```",
        (_ARCHIVE, Success(204, "The manifest lacks nothing.")),
        (*_DOWNLOAD_PROBLEMS, InvalidBody, RequestBodyTimeout),
        (ORDER_ID, *download_parameters(without=frozenset({"only"})), LINK_TOKEN, *TRACING),
        _MISSING_BODY,
        security=KEY_OR_LINK,
    ),
    Operation(
        "post",
        "/orders/{order_id}/links",
        "createLink",
        "Orders",
        "Make a link that needs no key",
        "It opens this order with exactly these parameters, until it expires. For a customer, or for a browser.\n\n"
        f'```sh\ncurl --json \'{{"parameters": {{"quality": 80}}}}\' {HERE}/orders/{EXAMPLE_ORDER}/links\n```\n\n'
        "A link to full quality can only be made by who may spend credits.",
        (Success(201, "The link.", json_content(ref("Link"))),),
        (
            *_PARAMETER_PROBLEMS,
            InvalidBody,
            RequestBodyTimeout,
            *_KEY_PROBLEMS,
            FullQualityNotAllowed,
            LinksNotConfigured,
        ),
        (ORDER_ID,),
        _LINK_BODY,
        security=KEY,
    ),
    Operation(
        "get",
        "/images/{image_id}/preview",
        "getPreview",
        "Orders",
        "A small picture of one image",
        f"Free, and at most {MAX_WIDTH_PIXELS} pixels wide. It never spends a credit.",
        (Success(200, "The picture.", {f"image/{one}": {} for one in FORMATS}),),
        (*_KEY_PROBLEMS, ApiKeyNotConfigured, ThumbnailUnavailable, AtCapacity),
        (
            {
                "name": "image_id",
                "in": "path",
                "required": True,
                "description": "The image's id, from the order.",
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
                "example": EXAMPLE_IMAGE,
            },
        ),
        security=KEY,
    ),
    Operation(
        "get",
        "/archives/{archive_id}",
        "getReceipt",
        "Downloads",
        "See what became of a download",
        "The same facts as in the manifest, while the archive runs and for a while after. Only the instance that "
        "streams an archive knows of it.",
        (Success(200, "The receipt.", json_content(ref("Receipt"))),),
        (InvalidArchiveId, *_KEY_PROBLEMS, LinkInvalid, LinkExpired, ArchiveNotFound),
        (ARCHIVE_ID, LINK_TOKEN),
        security=KEY_OR_LINK,
    ),
    Operation(
        "get",
        "/archives/{archive_id}/events",
        "watchDownload",
        "Downloads",
        "Watch a download live",
        _EVENTS,
        (
            Success(
                200,
                "The events, until the archive has ended.",
                {"text/event-stream": {"schema": {"type": "string"}}},
                ("X-Accel-Buffering",),
                {
                    "x-events": {
                        "snapshot": ref("Receipt"),
                        "image": ref("ImageChange"),
                        "archive": ref("ReceiptSummary"),
                        "end": ref("ReceiptSummary"),
                    }
                },
            ),
            Success(204, "`Last-Event-ID` is that of the end: nothing more comes, and a browser does not ask again."),
        ),
        (InvalidArchiveId, *_KEY_PROBLEMS, LinkInvalid, LinkExpired, ArchiveNotFound, AtCapacity),
        (
            ARCHIVE_ID,
            LINK_TOKEN,
            header_parameter("Last-Event-ID", "The last `id` that you have seen.", {"type": "string"}),
        ),
        security=KEY_OR_LINK,
    ),
)
