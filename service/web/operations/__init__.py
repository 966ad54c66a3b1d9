"""Endpoints for operators: health, metrics, statistics, Sentry issues."""
