"""HTTP/2 (RFC 9113): its frames, behind the same request, answer and exchange as HTTP/1."""
