"""LMTP."""
