"""HTTP as the callers see it: the only place, with ``app``, that knows requests and responses."""
