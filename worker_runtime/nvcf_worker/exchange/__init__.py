"""One request's way between queue, handler and callers: bodies, files, responses, polls."""
