"""New orders from uploaded photos."""
