"""Orders from uploaded photos."""
