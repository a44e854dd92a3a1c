import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Keep one sum for each sequence."""

    def initialize(self, args):
        self._sums = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            names = ("IN", "START", "CORRID")
            value, start, key = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)[0] for name in names
            )
            total = int(value) + (0 if start else self._sums.get(int(key), 0))
            self._sums[int(key)] = total
            output = pb_utils.Tensor("OUT", np.array([[total]], np.int32))
            responses.append(pb_utils.InferenceResponse([output]))
        return responses
