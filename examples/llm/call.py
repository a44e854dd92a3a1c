"""Ask the model and print its words as they come: `python call.py GATEWAY KEY FUNCTION QUESTION`.

With OpenAI's Python client it is shorter; this needs nothing but Python.
"""

from __future__ import annotations

import json
import sys
import urllib.request


def main(gateway: str, key: str, function: str, question: str) -> None:
    """Stream one answer of at most 40 tokens."""
    body = {
        "model": f"{function}/small",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 40,
        "temperature": 0,
        "stream": True,
    }
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = json.dumps(body).encode()
    call = urllib.request.Request(f"{gateway}/v1/chat/completions", data, headers)  # noqa: S310 - your own
    with urllib.request.urlopen(call) as answer:  # noqa: S310
        for line in answer:
            if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                event = json.loads(line[6:])
                if "error" in event:
                    raise SystemExit(event["error"]["message"])
                for choice in event["choices"]:
                    print(choice["delta"].get("content") or "", end="", flush=True)
    print()


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(f"usage: {sys.argv[0]} GATEWAY KEY FUNCTION QUESTION")
    main(*sys.argv[1:])
