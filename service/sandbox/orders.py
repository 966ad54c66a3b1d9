"""The fixed orders of every sandbox: one for each situation of a download, difficult names included."""

import unicodedata

from service.sandbox.state import SandboxImage, SandboxOrder

DEMO_ORDER_ID = "5a4d0b0c-0000-4000-8000-00000000d0e0"
PARTIAL_ORDER_ID = "5a4d0b0c-0000-4000-8000-000000009a47"
LARGE_ORDER_ID = "5a4d0b0c-0000-4000-8000-000000001000"
EMPTY_ORDER_ID = "5a4d0b0c-0000-4000-8000-00000000e0e0"
MERGING_ORDER_ID = "5a4d0b0c-0000-4000-8000-000000003e49"
LIVE_ORDER_ID = "5a4d0b0c-0000-4000-8000-00000000117e"

LARGE_ORDER_IMAGES = 1000
_LARGE_WIDTH = 160
# Drawn pictures which the large order shares.
_LARGE_PICTURES = 8

# Each name tests another rule of archive/naming.py.
DEMO_NAMES = (
    "living room.jpg",
    "kitchen.jpg",
    "kitchen.jpg",
    "Kitchen.JPG",
    unicodedata.normalize("NFC", "Küche.jpg"),
    unicodedata.normalize("NFD", "Küche.jpg"),
    "部屋 🛋️.png",
    "IMG_2041",
    "DSC_0042.CR2",
    "../../x.jpg",
    r"C:\photos\hall.jpg",
    ".hidden.jpg",
    "CON.jpg",
    "a very long name, as some upload tools make them " + "from the whole address " * 12 + ".jpg",
)


def fixed_orders() -> list[SandboxOrder]:
    """Return new instances of the fixed orders."""
    return [
        SandboxOrder(
            DEMO_ORDER_ID, "Haus am Süßbach 12, 客厅", _numbered(DEMO_ORDER_ID, map(SandboxImage, DEMO_NAMES))
        ),
        SandboxOrder(PARTIAL_ORDER_ID, "Partly done", _numbered(PARTIAL_ORDER_ID, _partial_images())),
        SandboxOrder(LARGE_ORDER_ID, "Large", _numbered(LARGE_ORDER_ID, _large_images())),
        SandboxOrder(EMPTY_ORDER_ID, "Empty"),
        SandboxOrder(MERGING_ORDER_ID, "Brackets being merged", is_merging=True, is_processing=True),
        SandboxOrder(LIVE_ORDER_ID, "Being processed", _numbered(LIVE_ORDER_ID, _live_images())),
    ]


def _partial_images() -> list[SandboxImage]:
    return [
        SandboxImage("garden.jpg"),
        SandboxImage("garage.jpg", status="processing"),
        SandboxImage("cellar.jpg", status="error", status_reason="The image could not be decoded"),
        SandboxImage("attic.jpg", status="expired"),
        SandboxImage("balcony.jpg", status="waiting"),
        SandboxImage("bathroom.jpg"),
        SandboxImage("stairs.jpg"),
    ]


def _large_images() -> list[SandboxImage]:
    return [
        SandboxImage(f"IMG_{number:04}.jpg", width=_LARGE_WIDTH, picture_seed=number % _LARGE_PICTURES)
        for number in range(1, LARGE_ORDER_IMAGES + 1)
    ]


def _live_images() -> list[SandboxImage]:
    ready = [SandboxImage(f"ready {number}.jpg") for number in (1, 2)]
    return [*ready, *(SandboxImage(f"after {polls} polls.jpg", ready_after_polls=polls) for polls in (1, 2, 3, 5))]


def _numbered(order_id: str, images: "list[SandboxImage] | map[SandboxImage]") -> list[SandboxImage]:
    """Derive the ids of the images from the order's id, so that they are the same in every run."""
    numbered = list(images)
    for number, image in enumerate(numbered, start=1):
        image.image_id = f"{order_id[:9]}{order_id[-4:]}-4001-8000-{number:012}"
    return numbered
