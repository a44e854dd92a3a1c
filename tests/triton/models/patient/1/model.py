import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Sleep."""

    def execute(self, requests):
        responses = []
        for request in requests:
            seconds = pb_utils.get_input_tensor_by_name(request, "SECONDS").as_numpy()
            pb_utils.Logger.log_info("patient: begins")
            time.sleep(float(seconds[0, 0]))
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", seconds)]))
        return responses
