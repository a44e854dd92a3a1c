"""`tokens(...)`: a function says how many tokens a request took."""

from __future__ import annotations

OPERATION = "chat"


def tokens(
    input: int | None = None,  # noqa: A002 - what the conventions call it
    output: int | None = None,
    *,
    model: str = "",
    provider: str = "",
    operation: str = OPERATION,
) -> None:
    """Tell the tokens of the request that is being handled, from a handler or anything that it calls.

    input, output: how many the prompt and the answer have. model, provider, operation: by OpenTelemetry's
    conventions for generative AI, e.g. "llama-3.1-8b", "vllm", "chat" or "embeddings". They become the figure
    `gen_ai.client.token.usage` and attributes of the current span; without telemetry nothing happens.
    """
    from opentelemetry import trace

    from nvcf_otel import names
    from nvcf_otel.worker_instruments import TOKEN_USAGE
    from nvcf_worker.telemetry.values import tell

    span = trace.get_current_span()
    known = {
        names.GEN_AI_OPERATION: operation,
        **({names.GEN_AI_MODEL: model} if model else {}),
        **({names.GEN_AI_PROVIDER: provider} if provider else {}),
    }
    counts = ((names.GEN_AI_INPUT_TOKENS, "input", input), (names.GEN_AI_OUTPUT_TOKENS, "output", output))
    for attribute, kind, count in counts:
        if count is not None:
            tell(TOKEN_USAGE.name, count, {**known, names.GEN_AI_TOKEN_TYPE: kind}, span)
            if span.is_recording():
                span.set_attribute(attribute, count)
    if span.is_recording():
        span.set_attributes(known)
