"""Write the model of the tests: a llama of 1 MB whose answer is known word for word.

Each word of TEXT is one token. The output layer maps a word's embedding to the next word, the last one to the
first, and every other token to the first word: at temperature 0 the engine says TEXT again and again.
Attention and feed-forward layers are there and add next to nothing. `tiny_model.py FILE` needs `gguf`.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

TEXT = "the quick brown fox jumps over a lazy dog while seven small birds sing about warm rain on green hills"
WORDS = TEXT.split()
CONTEXT = 16384
"""Tokens of one slot at most."""

WIDTH = 128
LAYERS = 2
HEADS = 4
FORWARD = 256
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space."""
_UNKNOWN, _CONTROL, _NORMAL, _BYTE = 2, 3, 1, 6
_CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

Weights = NDArray[np.float32]


def vocabulary() -> tuple[list[str], list[int], list[float]]:
    """Return the tokens with their types and scores: control tokens, bytes, a space, the words."""
    control = ["<unk>", "<s>", "</s>"]
    octets = [f"<0x{octet:02X}>" for octet in range(256)]
    words = [SPACE, *(SPACE + word for word in WORDS)]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * len(octets), *[_NORMAL] * len(words)]
    scores = [0.0] * 3 + [-1e4] * len(octets) + [-50.0] + [-1.0] * len(WORDS)
    return [*control, *octets, *words], kinds, scores


def embeddings(tokens: list[str], noise: np.random.Generator) -> tuple[Weights, Weights]:
    """Return the input and output embeddings, which make the chain of words."""
    vectors = noise.standard_normal((len(tokens), WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    output = np.zeros_like(vectors)
    first = len(tokens) - len(WORDS)
    for at in range(len(WORDS)):
        output[first + (at + 1) % len(WORDS)] += 4 * vectors[first + at]
    # A prompt ends with a byte; each vector is nearly at right angles to all others.
    for octet in vectors[:first]:
        output[first] += 0.5 * octet
    return vectors, output


def write(path: str) -> None:
    """Write the model file."""
    from gguf import GGUFWriter

    noise = np.random.default_rng(18)
    tokens, kinds, scores = vocabulary()
    file = GGUFWriter(path, "llama")
    file.add_name("tiny")
    file.add_context_length(CONTEXT)
    file.add_embedding_length(WIDTH)
    file.add_block_count(LAYERS)
    file.add_feed_forward_length(FORWARD)
    file.add_head_count(HEADS)
    file.add_head_count_kv(HEADS)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_dimension_count(WIDTH // HEADS)
    file.add_vocab_size(len(tokens))
    file.add_tokenizer_model("llama")
    file.add_token_list(tokens)
    file.add_token_types(kinds)
    file.add_token_scores(scores)
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)
    file.add_unk_token_id(0)
    file.add_chat_template(_CHAT)

    def small(*shape: int) -> Weights:
        return (noise.standard_normal(shape) * 0.001).astype(np.float32)

    inputs, outputs = embeddings(tokens, noise)
    file.add_tensor("token_embd.weight", inputs)
    file.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    file.add_tensor("output.weight", outputs)
    for layer in range(LAYERS):
        shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
        shapes |= {"ffn_gate": (FORWARD, WIDTH), "ffn_up": (FORWARD, WIDTH), "ffn_down": (WIDTH, FORWARD)}
        for name, shape in shapes.items():
            file.add_tensor(f"blk.{layer}.{name}.weight", small(*shape))
        for name in ("attn_norm", "ffn_norm"):
            file.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def said(words: int) -> str:
    """Return the first words that the engine says, as the content of its answer."""
    return "".join(f" {WORDS[at % len(WORDS)]}" for at in range(words))


if __name__ == "__main__":
    write(sys.argv[1])
