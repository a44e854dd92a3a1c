"""`tokens(...)`: report from a function how many tokens a request took."""

from __future__ import annotations

OPERATION = "chat"


def tokens(
    input: int | None = None,  # noqa: A002 - the name in OpenTelemetry's conventions
    output: int | None = None,
    *,
    model: str = "",
    provider: str = "",
    operation: str = OPERATION,
) -> None:
    """Report the tokens of the request that is being handled, from a handler or a function that it calls.

    input: number of tokens in the prompt. output: number of tokens in the response.
    model, provider, operation: names by OpenTelemetry's conventions for generative AI, e.g. "llama-3.1-8b",
        "vllm", and "chat" or "embeddings".

    The numbers are added to the metric `gen_ai.client.token.usage` and to the current span. Without telemetry
    nothing happens.
    """
    from opentelemetry import trace

    from nvcf_otel import names
    from nvcf_otel.worker_instruments import TOKEN_USAGE
    from nvcf_worker.telemetry.measurements import measure

    span = trace.get_current_span()
    known = {
        names.GEN_AI_OPERATION: operation,
        **({names.GEN_AI_MODEL: model} if model else {}),
        **({names.GEN_AI_PROVIDER: provider} if provider else {}),
    }
    counts = ((names.GEN_AI_INPUT_TOKENS, "input", input), (names.GEN_AI_OUTPUT_TOKENS, "output", output))
    for attribute, kind, count in counts:
        if count is not None:
            measure(TOKEN_USAGE.name, count, {**known, names.GEN_AI_TOKEN_TYPE: kind}, span)
            if span.is_recording():
                span.set_attribute(attribute, count)
    if span.is_recording():
        span.set_attributes(known)
