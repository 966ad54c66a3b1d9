"""Orders before they are downloaded: summary, thumbnails, webhooks."""
