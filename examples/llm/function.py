"""A language model on the CPU or a GPU: llama.cpp's server with the model file that MODEL_FILE names."""

import os

from nvcf_worker import llm_engine

NAME = "small"
"""How callers name the model."""


def command(model_file: str) -> list[str]:
    """Return the command line of the engine. `{port}` becomes any free port."""
    options = ["--alias", NAME, "--parallel", "4", "--ctx-size", "8192", "--jinja", "--metrics", "--no-ui"]
    return ["llama-server", "-m", model_file, "--host", "127.0.0.1", "--port", "{port}", *options]


if __name__ == "__main__":
    llm_engine(command(os.environ["MODEL_FILE"]), models=[NAME])
