"""Models behind HTTP: how requests are sent and answers read, shared by all backends that speak to a server."""
