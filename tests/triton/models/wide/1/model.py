import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Give back what is given."""

    def execute(self, requests):
        responses = []
        for request in requests:
            seconds = pb_utils.get_input_tensor_by_name(request, "SECONDS")
            if seconds is not None:
                pb_utils.Logger.log_info("wide: sleeps")
                time.sleep(float(seconds.as_numpy().reshape(-1)[0]))
            x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
            outputs = [pb_utils.Tensor("Y", x), pb_utils.Tensor("SUM", x.sum(axis=1, keepdims=True))]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
