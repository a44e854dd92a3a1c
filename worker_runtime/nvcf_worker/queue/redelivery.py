"""How often a request may be delivered (protocol.md section 2, max deliver), as decisions.

A request that kills its worker on every try must end with an answer to its caller, and only a worker that
gets it delivered can give that. So the last delivery runs nothing: it carries the answer "too many
deliveries". Of the consumer's 5 deliveries 4 are tries.
"""

from __future__ import annotations


def slotless_delay(attempt: int) -> float:
    """Seconds before a request that found no slot is delivered again.

    Each delivery counts, run or not, and there are only a few: at once they would be used up within
    milliseconds while all workers are busy. attempt: 1 for the first delivery.
    """
    return float(0.1 * 4.0 ** min(attempt - 1, 4))


def exhausted(attempt: int, max_deliver: int) -> bool:
    """Whether this delivery must only be answered, not run.

    attempt: 1 for the first delivery. max_deliver: the consumer's limit; 0 for none. Without a limit the
    number says nothing: busy workers of other makes hand requests back at once, again and again. A consumer
    that delivers only once leaves no choice but to run it.
    """
    return max_deliver > 1 and attempt >= max_deliver


def last_run(attempt: int, max_deliver: int) -> bool:
    """Whether a request that goes back to the queue now would not be run again."""
    return exhausted(attempt + 1, max_deliver) or max_deliver == 1
