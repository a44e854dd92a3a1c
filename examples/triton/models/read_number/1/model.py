import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Have the ensemble read each drawing, until there is none left or the caller has left."""

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            pictures = pb_utils.get_input_tensor_by_name(request, "IMAGES").as_numpy()
            for at in range(len(pictures)):
                if sender.is_cancelled():
                    break
                sender.send(self._read(pictures[at : at + 1]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _read(self, picture):
        call = pb_utils.InferenceRequest(
            model_name="read_digit",
            requested_output_names=["LABEL"],
            inputs=[pb_utils.Tensor("IMAGE", picture)],
        )
        answer = call.exec()
        if answer.has_error():
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(answer.error().message()))
        label = pb_utils.get_output_tensor_by_name(answer, "LABEL").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("LABEL", label.reshape(1))])
