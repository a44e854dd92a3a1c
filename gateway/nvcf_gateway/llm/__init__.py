"""OpenAI-compatible routes: the member `model` names the function, and the queue carries the call."""
