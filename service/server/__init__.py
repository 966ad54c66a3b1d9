"""The process: listener, signals, graceful shutdown, memory tuning."""
