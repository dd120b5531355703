"""TLS that is passed through, and routed by what its handshake shows. Nothing is decrypted."""
