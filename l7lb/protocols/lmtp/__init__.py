"""LMTP (RFC 2033): deliveries, each recipient to its own mailbox's server."""
