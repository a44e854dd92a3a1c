"""ASGI 3 applications served in the worker's process, without a port: `serve(app)`."""
