class TritonPythonModel:
    """Fail to load."""

    def initialize(self, args):
        raise RuntimeError("the file of weights is missing")

    def execute(self, requests):
        return []
