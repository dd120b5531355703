"""ManageSieve (RFC 5804): Sieve scripts, kept on the server that has the mailbox."""
