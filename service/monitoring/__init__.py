"""Logs, metrics, trace context and error reports."""
