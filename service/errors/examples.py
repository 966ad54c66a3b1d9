"""Values that the example problems share. The ids are those of the sandbox's demo order."""

from collections.abc import Mapping
from typing import Any

EXAMPLE_ORDER_ID = "5a4d0b0c-0000-4000-8000-00000000d0e0"
EXAMPLE_IMAGE_ID = "5a4d0b0c-d0e0-4001-8000-000000000001"
EXAMPLE_UUID = "3f2b8c1e-5d4a-4e6f-9a7b-0c1d2e3f4a5b"
FAILED_IMAGE: Mapping[str, Any] = {
    "image_id": EXAMPLE_IMAGE_ID,
    "name": "kitchen.jpg",
    "reason": "not_ready",
    "detail": "The image is not processed yet.",
    "upstream_status": None,
}
FAILED_FILE: Mapping[str, Any] = {
    "file": "notes.txt",
    "image_id": None,
    "outcome": "failed",
    "reason": "not_a_photo",
    "detail": "the first bytes are not those of a photo that can be enhanced",
    "bytes": 120,
}
