"""ASGI 3 applications served in process, without any port: `serve(app)`."""
