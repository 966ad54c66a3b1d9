"""Who may do what: keys, sessions, signed links."""
