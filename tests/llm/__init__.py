"""Functions on a real LLM engine: llama.cpp's server with a tiny model that always says the same."""
