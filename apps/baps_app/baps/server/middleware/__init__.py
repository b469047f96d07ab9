"""ASGI middleware: bounds on bodies, connections and queues, security headers, the root path."""
