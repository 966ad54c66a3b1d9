"""The process: its listener, its signals, its shutdown."""
