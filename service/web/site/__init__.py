"""The web page and the reference."""
