"""Notes for operators on each metric: details beyond its help text, and how to read it.

The table in ``deploy/OBSERVABILITY.md`` joins them with name, type, labels and help of the registry; a test compares
both, in both directions.
"""

from collections.abc import Mapping

METRIC_NOTES: Mapping[str, str] = {
    "batch_archives_total": "Each request for an archive once, except HEAD. `complete`; `partial` (with a report); "
    "`failed` (images were requested, the response is an error); `aborted` (deliberately, at shutdown or by a fault of "
    "the service); `client_gone` (disconnected or stalled); `rejected` (by parameters, capacity, look-up or plan). "
    "`aborted` should not grow outside of deployments; `why` in the log explains `failed` and `rejected`.",
    "batch_archives_in_progress": "The current work: archives whose images are being requested or streamed.",
    "batch_archive_slots_in_use": "Requests that hold one of the `MAX_ARCHIVES` slots, including those whose order is "
    "being looked up or has no images yet, and HEAD. Near the limit: add replicas. Far above the archives in progress: "
    "the API is slow.",
    "batch_archives_limit": "`MAX_ARCHIVES`.",
    "batch_archive_first_byte_seconds": "The order look-up is included; downloads with `wait` are not. At 50 s clients "
    "get a 504.",
    "batch_archive_duration_seconds": "Depends on order and client: compare it with the blocked seconds.",
    "batch_archive_bytes_total": "The throughput.",
    "batch_client_blocked_seconds_total": "Slow clients. They cost memory only.",
    "batch_upstream_blocked_seconds_total": "A slow or failing upstream. The order look-up is not included.",
    "batch_credits_spent_total": "With `preview=false` and without `dev_mode`; includes images that then failed, or "
    "whose client disconnected. The service's own count: an image bought by two archives at once is counted twice. The "
    "bill is the API's. Alert on unexpected growth.",
    "batch_images_total": "`downloaded`, or `failed` with the reason. `unauthorized` and `no_credits` need the "
    "operator immediately.",
    "batch_image_bytes_total": "Compare with `batch_archive_bytes_total`: the difference is the cost of roll-backs and "
    "aborted archives.",
    "batch_image_size_bytes": "Previews or full quality.",
    "batch_image_duration_seconds": "Includes all attempts, the time paused by a slow client, and thumbnails. Long "
    "with fast clients means a slow upstream.",
    "batch_image_retries_total": "The early sign of a failing upstream, before clients notice.",
    "batch_image_resumes_total": "`range` requested the rest; `replay` requested the image from the start and skipped "
    "what was received. Many `replay`: the storage sends no ETag or supports no ranges.",
    "batch_image_rollbacks_total": "Rare: images that change or fail midway.",
    "batch_receipts": "Bounded by `MAX_RECEIPTS` and `MAX_ARCHIVES`.",
    "batch_sse_connections": "At 256 further ones get a 503.",
    "batch_uploads_total": "Many `not_a_photo`: a client sends something else.",
    "batch_upload_bytes_total": "",
    "batch_upstream_requests_total": "Hops: `api` first, `asset` redirects, `storage` has the image. Status `error`: "
    "no response. Cancelled requests are not counted. Shows where errors occur.",
    "batch_upstream_request_duration_seconds": "Which hop is slow.",
    "batch_rate_limit_wait_seconds_total": "Summed over all requests. Growth: `UPSTREAM_REQUESTS_PER_SECOND` or a 429 "
    "limits the service.",
    "batch_upstream_throttled_total": "Other clients use the same account or address.",
    "batch_upstream_failing": "1 after 20 requests in a row to `api` or `asset` without a response below 500, until "
    "one succeeds or 30 s have passed since the last; `/health/ready` then reports `upstream_failing`. The upstream is "
    "down or unreachable.",
    "batch_read_ahead_bytes": "At its limit reading ahead pauses; nothing fails.",
    "batch_read_ahead_limit_bytes": "`READ_AHEAD_TOTAL_BYTES`.",
    "batch_http_requests_total": "By route template (`unmatched` for none), method (`other` for unusual ones) and "
    "status (`none` if the client had disconnected). An aborted archive keeps its 200. Traffic and errors of all "
    "routes.",
    "batch_event_loop_lag_seconds": "Measured twice a second. Above 0.1 s the process is blocked or the CPU is "
    "overloaded.",
    "batch_log_lines_dropped_total": "10,000 lines or 8 MiB were queued for the stream, or a write failed (no reader, "
    "no space). Above 0 the log has gaps, downloads have none: check the log's reader and its disk.",
    "batch_build_info": "Which version runs where.",
    "process_virtual_memory_bytes": "",
    "process_resident_memory_bytes": "Must not grow with the size of archives.",
    "process_start_time_seconds": "Restarts.",
    "process_cpu_seconds_total": "Near 1 per second the process is at its limit: one event loop uses one core.",
    "process_open_fds": "",
    "process_max_fds": "Each archive needs two, each image in flight one.",
    "python_info": "",
    "python_gc_objects_collected_total": "",
    "python_gc_objects_uncollectable_total": "Should stay 0.",
    "python_gc_collections_total": "",
}
