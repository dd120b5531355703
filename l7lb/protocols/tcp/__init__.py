"""Any protocol over TCP, passed through and routed by the client's address."""
