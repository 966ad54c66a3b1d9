"""The HTTP API: with ``app`` and ``contexts``, the only part that knows requests and responses."""
