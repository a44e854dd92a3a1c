"""Routes of OpenAI's API. Their bodies are those of OpenAI's own description, so they are not repeated."""

from __future__ import annotations

from typing import Any

from nvcf_gateway.openapi.parts import POLL_SECONDS, Operation, json_answer, operation_of
from nvcf_gateway.openapi.schemas import TEXT, Schema, ref

_ERROR = {
    "description": "OpenAI's error object.",
    "headers": {"x-request-id": {"schema": TEXT}},
    "content": {"application/json": {"schema": ref("OpenAiError")}},
}
_ANSWER = {
    "description": "The function's own answer, or OpenAI's error object. A stream gets a comment each 10 s "
    "while it waits, and an error event if it breaks.",
    "headers": {"x-request-id": {"schema": TEXT}},
    "content": {"*/*": {"schema": {}}},
}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}


def models() -> dict[str, dict[str, Operation]]:
    """Return the routes of OpenAI's API."""
    calls = {
        "/v1/chat/completions": ("createChatCompletion", "Answer a conversation."),
        "/v1/completions": ("createCompletion", "Continue a text."),
        "/v1/responses": ("createResponse", "Make a response."),
        "/v1/embeddings": ("createEmbedding", "Make embeddings."),
    }
    paths: dict[str, dict[str, Operation]] = {
        path: {
            "post": operation_of(
                name,
                f"{summary} The member `model` is functionId[/versionId]/name.",
                {401: _ERROR, "default": _ANSWER},
                (),
                tag="openai",
                raw_body="application/json",
                parameters=(POLL_SECONDS,),
            )
        }
        for path, (name, summary) in calls.items()
    }
    answers: dict[str, dict[int | str, Any]] = {
        "list": {200: json_answer("OpenAiModels"), 401: _ERROR, "default": _ERROR},
        "one": {200: json_answer("OpenAiModel"), 401: _ERROR, "default": _ERROR},
    }
    text = "The models that the caller may use."
    paths["/v1/models"] = {"get": operation_of("listModels", text, answers["list"], (), tag="openai")}
    for suffix, name in (("{model}", "getModel"), ("{function_id}/{name}", "getModelOfFunction")):
        paths[f"/v1/models/{suffix}"] = {
            "get": operation_of(name, "One model.", answers["one"], (), tag="openai")
        }
    return paths


LLM_SCHEMAS: dict[str, Schema] = {
    "OpenAiError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": TEXT,
                    "type": TEXT,
                    "param": _TEXT_OR_NULL,
                    "code": _TEXT_OR_NULL,
                },
            }
        },
    },
    "OpenAiModel": {
        "type": "object",
        "required": ["id", "object", "created", "owned_by"],
        "properties": {
            "id": TEXT,
            "object": {"const": "model"},
            "created": {"type": "integer", "description": "Unix seconds."},
            "owned_by": TEXT,
        },
    },
    "OpenAiModels": {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": ref("OpenAiModel")},
        },
    },
}
