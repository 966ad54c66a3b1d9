"""What operators need: health, metrics, statistics, Sentry issues."""
