"""``GET /archives/{archive_id}``: the receipt of a download."""

from aiohttp import web

from service.archive.parameters import check_archive_id
from service.web.auth.guards import require_receipt_access, require_receipt_link
from service.web.downloads.context import DOWNLOADS


async def get_receipt(request: web.Request) -> web.Response:
    """Return the receipt of an archive, finished or in progress."""
    require_receipt_access(request)
    archive_id = check_archive_id(request.match_info["archive_id"])
    receipt = request.app[DOWNLOADS].receipts.find(archive_id)
    require_receipt_link(request, receipt)
    return web.json_response(receipt.snapshot())
