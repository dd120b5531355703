"""SMTP (RFC 5321) as a relay by recipient, and submission (RFC 6409) by login."""
