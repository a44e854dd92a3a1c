"""A class that learns once in each instance: `setup`, `warmup`, `__call__`, `teardown`.

    nvcf deploy examples/class_setup/function.py --name language
    nvcf invoke language --data '{"text": "wo ist der Bahnhof"}'

It guesses the language of a text from its letter pairs (naive Bayes with add-one smoothing). `setup` learns
them from a few sentences of each language. The instance takes requests after `setup` and `warmup`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from itertools import pairwise
from typing import Any

from nvcf_worker import BadInput, SyncRequest, serve

log = logging.getLogger("function")

SENTENCES = {
    "English": "the quick brown fox jumps over the lazy dog. where is the station, please? "
    "i would like a cup of tea with milk. this is what they were thinking about when we met.",
    "German": "der schnelle braune fuchs springt über den faulen hund. wo ist bitte der bahnhof? "
    "ich hätte gern eine tasse tee mit milch. das ist es, woran sie dachten, als wir uns trafen.",
    "French": "le vite renard brun saute par-dessus le chien paresseux. où est la gare, s'il vous plaît? "
    "je voudrais une tasse de thé au lait. c'est à cela qu'ils pensaient quand nous nous sommes vus.",
}


def pairs(text: str) -> Counter[str]:
    """Count the letter pairs of a text."""
    words = "".join(letter if letter.isalpha() else " " for letter in text.lower()).split()
    return Counter(first + second for word in words for first, second in pairwise(f" {word} "))


class Language:
    """The function: each instance has one model."""

    def setup(self) -> None:
        """Learn the letter pairs of each language."""
        counts = {language: pairs(text) for language, text in SENTENCES.items()}
        known = set().union(*counts.values())
        self.model: dict[str, dict[str, float]] = {}
        for language, found in counts.items():
            total = found.total() + len(known)
            self.model[language] = {pair: math.log((found[pair] + 1) / total) for pair in known}
        log.info("learnt %d letter pairs of %d languages", len(known), len(counts))

    def warmup(self) -> None:
        """Make one guess, so that the first request is as fast as later ones."""
        self.guess("hello")

    def guess(self, text: str) -> dict[str, float]:
        """Return the probability of each language. They are equal if no letter pair is known."""
        found = pairs(text)
        scores = {
            language: sum(weights.get(pair, 0.0) * number for pair, number in found.items())
            for language, weights in self.model.items()
        }
        best = max(scores.values())
        shares = {language: math.exp(score - best) for language, score in scores.items()}
        total = sum(shares.values())
        return {language: round(share / total, 4) for language, share in shares.items()}

    def __call__(self, request: SyncRequest) -> dict[str, Any]:
        """`{"text": "..."}` -> the most probable language, and all of them."""
        match request.json():
            case {"text": str(text)} if text.strip():
                chances = self.guess(text)
                return {"language": max(chances, key=chances.__getitem__), "chances": chances}
        raise BadInput('send {"text": "..."} with some text')

    def teardown(self) -> None:
        """Free the model."""
        self.model.clear()


if __name__ == "__main__":
    serve(Language)
