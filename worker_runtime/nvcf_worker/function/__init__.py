"""What a function's author sees: handlers, routes, requests, responses."""
