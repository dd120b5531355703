"""The data path: listeners, connections, the way to a server, and the relay of bytes. It knows no protocol."""
