"""Refuses requests that want the rest of an earlier archive, so that no client joins parts of two archives.

Archives have no ETag, and no second one has the bytes of the first. The order of evaluation is that of RFC 9110 section
13.2.2: ``If-Match``, then ``Range`` with ``If-Range``.
"""

import re

from aiohttp import hdrs, web

from service.errors import ArchiveNotResumable

# One range with a first position behind the first byte and no last one; zeros may lead, and units ignore case (RFC 9110
# sections 14.1, 14.1.1). Around it may be empty list elements and blanks (section 5.6.1.2).
_REST_OF_BYTES = re.compile(r"bytes=[\t ,]*0*[1-9][0-9]*-[\t ,]*", re.IGNORECASE)
_START_OVER = "Start over without Range and without a part file: curl without '-C -', wget without '-c'."


def resumption_problem(request: web.Request) -> ArchiveNotResumable | None:
    """Return the problem of a request that wants an archive of before, or ``None``.

    - ``If-Match`` (section 13.1.1), with any method: ``*`` holds, a list of entity tags does not.
    - ``Range: bytes=N-`` with N > 0, unless with ``If-Range`` (section 13.1.5), which cannot match and so asks for the
      whole. ``bytes=0-`` and all other forms get the whole too: a server may ignore Range (section 14.2).

    By section 14.2 ``Range`` is defined for GET only. It is ignored with HEAD, but not with POST: wget repeats a broken
    POST with ``Range`` by itself, and would append a 200 to its part as it does after a GET.
    """
    conditions = request.headers.getall(hdrs.IF_MATCH, None)
    if conditions is not None and ",".join(conditions).strip() != "*":
        return ArchiveNotResumable(f"An archive has no ETag that If-Match could name. {_START_OVER}")
    ranges = ",".join(request.headers.getall(hdrs.RANGE, ()))
    if request.method != hdrs.METH_HEAD and hdrs.IF_RANGE not in request.headers and _REST_OF_BYTES.fullmatch(ranges):
        return ArchiveNotResumable(f"An archive cannot be sent from its middle. {_START_OVER}")
    return None
