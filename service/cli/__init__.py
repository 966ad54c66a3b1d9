"""Command line: starts the service, and downloads and creates orders through it."""
