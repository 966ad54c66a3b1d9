"""Headers that every response has."""

# Hides which software, and which version of it, serves.
SERVER_NAME = "autoenhance-batch"
# https://owasp.org/www-project-secure-headers/: no script, no frame, no sniffing, unless a page overrides it.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
