"""Operations on orders and their archives."""

from typing import Any

from service.archive.parameters import FORMATS
from service.errors import (
    EXAMPLE_IMAGE_ID,
    EXAMPLE_ORDER_ID,
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
from service.web.openapi.download_schemas import (
    FinishedImage,
    ImageSelection,
    Link,
    LinkRequest,
    Manifest,
    Order,
    Receipt,
    ReceiptImage,
    ReceiptSummary,
)
from service.web.openapi.operation import KEY, KEY_OR_LINK, Operation, Success, json_content
from service.web.openapi.parameters import (
    ARCHIVE_ID,
    LINK_TOKEN,
    ORDER_ID,
    TRACING,
    download_parameters,
    header_parameter,
    path_parameter,
)
from service.web.openapi.schemas import reference
from service.web.orders.thumbnails import MAX_WIDTH_PIXELS

HERE = "http://localhost:8000"
_ARCHIVE_HEADERS = ("Content-Disposition", "X-Total-Images", "X-Archive-Id", "X-Accel-Buffering")
_KEY_PROBLEMS = (AuthenticationRequired, TooManyAuthFailures)
_PARAMETER_PROBLEMS = (InvalidOrderId, InvalidParameter, UnknownParameter, RepeatedParameter)
_LOOKUP_PROBLEMS = (
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
    *_LOOKUP_PROBLEMS,
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
fetched. Failed images are listed, with the reason, in `_download_report.txt` and `_manifest.json` inside the archive.

```sh
curl --fail-with-body --remote-name --remote-header-name "{HERE}/orders/{EXAMPLE_ORDER_ID}/images?quality=80"
```

`preview=false` **spends credits**: one for each image that has not been bought before. Unknown and repeated parameters
are rejected, so that a misspelt `preview` never buys anything.

After the first byte the status cannot change: if the archive cannot be completed truthfully, the connection is aborted
(`curl` exits with 18). There is no `Content-Length`, and no ETag. An archive cannot be resumed: a `Range` that begins
after the first byte, such as `curl -C -` and `wget` send, is a 412, and so is an entity tag in `If-Match`: start over
without them. Other forms of `Range`, and any `Range` with `If-Range`, get the whole archive."""
_TRAILER_MEANINGS = {
    "X-Downloaded": "Number of images in the archive.",
    "X-Failed": "Number of images missing from the archive.",
}
_ARCHIVE = Success(
    200,
    "The archive. The trailers `X-Downloaded` and `X-Failed` (HTTP/1.1) have the numbers of images in it and missing "
    "from it.",
    {"application/zip": {}},
    (*_ARCHIVE_HEADERS, "Trailer"),
    {
        "x-trailers": {
            name: {"description": _TRAILER_MEANINGS[name], "schema": {"type": "integer", "minimum": 0}}
            for name in TRAILERS
        }
    },
)
_EVENTS = f"""\
Server-sent events: first the whole receipt, then every change, then the end. Connect before, during or after the
download: an id that is not in use yet is awaited for 10 seconds.

```sh
id=$(python3 -c 'import uuid; print(uuid.uuid4())')
curl --no-buffer "{HERE}/archives/$id/events" &
curl --output images.zip "{HERE}/orders/{EXAMPLE_ORDER_ID}/images?archive_id=$id"
```

| Event | Data |
| --- | --- |
| `snapshot` | `Receipt`: everything |
| `image` | `ReceiptImage` if an image was started or added, `FinishedImage` if it has ended |
| `archive` | `ReceiptSummary`: state or bytes have changed |
| `end` | `ReceiptSummary`: the final state |

The `id` of each event numbers the changes; a client that reconnects with `Last-Event-ID` gets everything changed since.
Lines that begin with a colon keep the connection alive."""
_SELECTION_BODY: dict[str, Any] = {
    "required": True,
    "description": "The `_manifest.json` of an earlier archive, or a list of image ids.",
    "content": {
        **json_content(
            {"anyOf": [reference(Manifest), reference(ImageSelection)]},
            examples={
                "list": {"summary": "A list of images", "value": {"only": [EXAMPLE_IMAGE_ID]}},
                "manifest": {
                    "summary": "A manifest, shortened",
                    "value": {"order_id": EXAMPLE_ORDER_ID, "missing": [EXAMPLE_IMAGE_ID]},
                },
            },
        ),
        "application/x-www-form-urlencoded": {"schema": reference(ImageSelection)},
    },
}
_LINK_BODY: dict[str, Any] = {
    "required": False,
    "content": json_content(
        reference(LinkRequest),
        example={"parameters": {"format": "webp", "quality": 80}, "expires_in_seconds": 3600},
    ),
}

OPERATIONS = (
    Operation(
        "get",
        "/orders/{order_id}",
        "getOrder",
        "Orders",
        "Get an order before downloading it",
        "One look-up; no image is requested, and nothing is bought. Takes the parameters of the download.\n\n"
        f'```sh\ncurl "{HERE}/orders/{EXAMPLE_ORDER_ID}?preview=false"\n```\n\n'
        "`credits.to_buy` is the price of a download with these parameters.",
        (Success(200, "The order.", json_content(reference(Order))),),
        (*_PARAMETER_PROBLEMS, ImageNotInOrder, *_KEY_PROBLEMS, *_LOOKUP_PROBLEMS),
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
        "Get the status and headers of a download",
        "The same after one order look-up. No image is requested, and nothing is bought.",
        (Success(200, "The order has images to download.", headers=_ARCHIVE_HEADERS),),
        _HEAD_PROBLEMS,
        (ORDER_ID, *download_parameters(), LINK_TOKEN, *TRACING),
        security=KEY_OR_LINK,
    ),
    Operation(
        "post",
        "/orders/{order_id}/images",
        "downloadMissing",
        "Orders",
        "Download only the images missing from an earlier archive, or a long list of images",
        "Send the manifest of an earlier archive: the images that it lists as missing are downloaded.\n\n"
        "```sh\nunzip -p images.zip _manifest.json |\n"
        f"  curl --json @- --output rest.zip {HERE}/orders/{EXAMPLE_ORDER_ID}/images\n```",
        (_ARCHIVE, Success(204, "The manifest lists no missing image.")),
        (*_DOWNLOAD_PROBLEMS, InvalidBody, RequestBodyTimeout),
        (ORDER_ID, *download_parameters(without=frozenset({"only"})), LINK_TOKEN, *TRACING),
        _SELECTION_BODY,
        security=KEY_OR_LINK,
    ),
    Operation(
        "post",
        "/orders/{order_id}/links",
        "createLink",
        "Orders",
        "Create a link that needs no API key",
        "The link allows the download of this order with exactly these parameters, until it expires. For a "
        "customer, or for a browser.\n\n"
        f'```sh\ncurl --json \'{{"parameters": {{"quality": 80}}}}\' {HERE}/orders/{EXAMPLE_ORDER_ID}/links\n```\n\n'
        "A link to full quality requires a key that may spend credits.",
        (Success(201, "The link.", json_content(reference(Link))),),
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
        "getThumbnail",
        "Orders",
        "Get the thumbnail of one image",
        f"Free, and at most {MAX_WIDTH_PIXELS} pixels wide. It never spends a credit.",
        (Success(200, "The thumbnail.", {f"image/{one}": {} for one in FORMATS}),),
        (*_KEY_PROBLEMS, ApiKeyNotConfigured, ThumbnailUnavailable, AtCapacity),
        (
            path_parameter(
                "image_id",
                "Id of the image, from the order.",
                EXAMPLE_IMAGE_ID,
                {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
            ),
        ),
        security=KEY,
    ),
    Operation(
        "get",
        "/archives/{archive_id}",
        "getReceipt",
        "Downloads",
        "Get the receipt of a download",
        "The facts of the manifest, while the archive is streamed and for `RECEIPT_TTL_SECONDS` after. Only the "
        "replica that streams an archive has its receipt.",
        (Success(200, "The receipt.", json_content(reference(Receipt))),),
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
                        "snapshot": reference(Receipt),
                        "image": {"anyOf": [reference(ReceiptImage), reference(FinishedImage)]},
                        "archive": reference(ReceiptSummary),
                        "end": reference(ReceiptSummary),
                    }
                },
            ),
            Success(204, "`Last-Event-ID` is the id of the last event: a browser does not reconnect."),
        ),
        (InvalidArchiveId, *_KEY_PROBLEMS, LinkInvalid, LinkExpired, ArchiveNotFound, AtCapacity),
        (
            ARCHIVE_ID,
            LINK_TOKEN,
            header_parameter("Last-Event-ID", "`id` of the last event received.", {"type": "string"}),
        ),
        security=KEY_OR_LINK,
    ),
)
