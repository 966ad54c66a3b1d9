"""The description of the service for programs (OpenAPI 3.1) behind ``/openapi.json`` and ``/docs``.

Problems, parameters and words come from the code itself; what is written by hand is judged by
``tests/web/test_openapi``, which makes every documented answer happen. ``document`` joins the parts.
"""
