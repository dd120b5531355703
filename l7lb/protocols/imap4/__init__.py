"""IMAP4 (RFC 3501, RFC 9051): from the login on, a session is its mailbox's server's."""
