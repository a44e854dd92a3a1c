import threading
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Answer each request in a thread of its own, so that many streams run side by side."""

    def execute(self, requests):
        for request in requests:
            delay = pb_utils.get_input_tensor_by_name(request, "DELAY")
            arguments = (
                request.get_response_sender(),
                pb_utils.get_input_tensor_by_name(request, "IN").as_numpy(),
                0.0 if delay is None else float(delay.as_numpy()[0]),
            )
            threading.Thread(target=self._send, args=arguments, daemon=True).start()

    def _send(self, sender, numbers, delay):
        for at in range(len(numbers)):
            time.sleep(delay)
            if sender.is_cancelled():
                pb_utils.Logger.log_info("repeat: cancelled")
                break
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", numbers[at : at + 1])]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
