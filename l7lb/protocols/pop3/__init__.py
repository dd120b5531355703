"""POP3 (RFC 1939): from the login on, a session is its mailbox's server's."""
