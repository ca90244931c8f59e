"""The link to the engine: HTTP/1.1 over a pool of connections, and what the engine says of itself."""
