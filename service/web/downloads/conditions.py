"""Conditional requests: rejects those for the rest of an earlier archive, so that no client joins two archives.

An archive has no ETag, and a second one does not repeat the bytes of the first. The order of evaluation is that of
RFC 9110 section 13.2.2: ``If-Match``, then ``Range`` with ``If-Range``.
"""

import re

from aiohttp import hdrs, web

from service.errors import ArchiveNotResumable

# One range with a first position after the first byte and no last position; leading zeros are allowed, and range units
# are case-insensitive (RFC 9110 sections 14.1, 14.1.1). Empty list elements and blanks may surround it (5.6.1.2).
_REST_OF_BYTES = re.compile(r"bytes=[\t ,]*0*[1-9][0-9]*-[\t ,]*", re.IGNORECASE)
_START_OVER = "Start over without Range and without a part file: curl without '-C -', wget without '-c'."


def precondition_problem(request: web.Request) -> ArchiveNotResumable | None:
    """Return the problem of a request for the rest of an earlier archive, or ``None``.

    - ``If-Match`` (section 13.1.1), with any method: ``*`` is true, a list of entity tags is false.
    - ``Range: bytes=N-`` with N > 0 is a problem, unless with ``If-Range`` (section 13.1.5), which cannot match, so
      that Range is ignored. ``bytes=0-`` and all other forms are ignored too, as a server may do (section 14.2).

    Section 14.2 defines ``Range`` for GET only. It is ignored with HEAD, but not with POST: wget automatically repeats
    an interrupted POST with ``Range``, and would append a 200 to its part file as it does after a GET.
    """
    conditions = request.headers.getall(hdrs.IF_MATCH, None)
    if conditions is not None and ",".join(conditions).strip() != "*":
        return ArchiveNotResumable(f"An archive has no ETag that If-Match could name. {_START_OVER}")
    ranges = ",".join(request.headers.getall(hdrs.RANGE, ()))
    if request.method != hdrs.METH_HEAD and hdrs.IF_RANGE not in request.headers and _REST_OF_BYTES.fullmatch(ranges):
        return ArchiveNotResumable(f"An archive cannot be sent from its middle. {_START_OVER}")
    return None
