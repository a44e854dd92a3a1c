import triton_python_backend_utils as pb_utils
from centre import centred


class TritonPythonModel:
    """Make features of drawings."""

    def execute(self, requests):
        responses = []
        for request in requests:
            pictures = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
            output = pb_utils.Tensor("FEATURES", centred(pictures))
            responses.append(pb_utils.InferenceResponse([output]))
        return responses
