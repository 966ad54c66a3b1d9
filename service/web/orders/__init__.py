"""Orders before their download: summary, thumbnails, webhooks."""
