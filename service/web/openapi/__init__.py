"""The OpenAPI 3.1 document behind ``/openapi.json`` and ``/docs``.

Parameters follow from ``ArchiveParameters``, problems from the error tree, schemas from pydantic models. The tests in
``tests/web/openapi`` provoke every documented response. ``document`` joins the parts.
"""
