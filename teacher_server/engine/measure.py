"""Measures once, after loading, how fast a model is on this machine.

A teacher on the wrong device, in the wrong dtype or with too few threads seems to work; this figure
shows it before days are lost.
"""

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from lectern_common.errors import Misconfigured, TeacherOutOfMemory
from lectern_common.logs import get_logger
from lectern_common.wire.formats import Representation
from teacher_server.engine.seam import Engine, SequenceAsk, base_ask

log = get_logger()

SECONDS = 1.0

# The sequence length of a run's default spec.
_LONGEST = 1024
_FIRST = 16
# Requested if the model offers no hidden states.
_TOP_K = 64


# How torch reports a sequence that is too long for a model: an index or a shape out of range.
TOO_LONG = (IndexError, RuntimeError, ValueError)


def measured_tokens_per_second(
    engine: Engine,
    batch_tokens: int,
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Returns the tokens per second of the engine's forwards; 0 if no batch fits into memory.

    In mode "throughput" a batch holds `batch_tokens`, in mode "independent" one sequence. Runs on
    the model's thread and takes about `seconds`, longer only if a forward of 16 tokens does.

    Raises:
        IndexError, RuntimeError, ValueError: a sequence was too long (TOO_LONG), because the
            model's config names no limit: see `longest_sequence`.
    """
    longest = min(_LONGEST, engine.facts.max_positions or _LONGEST)
    batches = (batch_tokens, 1) if engine.facts.mode == "throughput" else (1,)
    for most in batches:
        try:
            return rate(partial(_score, engine, most), longest, seconds, clock)
        except TeacherOutOfMemory:
            continue
    return 0.0


def longest_sequence(engine: Engine) -> int:
    """Returns the longest sequence, up to 1,024 tokens, that the engine can score, by halving.

    Raises:
        Misconfigured: it cannot score a single token.
    """
    works, too_long, reason = 0, _LONGEST + 1, ""
    while too_long - works > 1:
        length = (works + too_long) // 2
        try:
            _score(engine, 1, length)
        except TOO_LONG as error:
            too_long, reason = length, " ".join(str(error).split())[:200]
        else:
            works = length
    if not works:
        raise Misconfigured(f"the model cannot compute a single token: {reason}")
    log.warning("length limit found by trying", max_positions=works, reason=reason)
    return works


def rate(
    score: Callable[[int], int], longest: int, seconds: float, clock: Callable[[], float]
) -> float:
    """Returns the tokens per second of `score`, at the longest length that leaves time to measure.

    Lengths double from 16 up while the next one fits into half of `seconds`; the rest of the time
    goes to measuring the length reached. The first forward of a length, which allocates and chooses
    kernels, does not count.

    Args:
        score: computes a batch of sequences of a length; returns the tokens in it.
        longest: the longest sequence to try.
    """
    begun = clock()

    def timed(length: int) -> tuple[int, float]:
        start = clock()
        return score(length), clock() - start

    length = min(_FIRST, longest)
    _, took = timed(length)
    while length < longest:
        longer = min(2 * length, longest)
        if clock() - begun + took * longer / length > seconds / 2:
            break
        length = longer
        _, took = timed(length)

    tokens, elapsed = timed(length)
    while clock() - begun < seconds:
        more, took = timed(length)
        tokens, elapsed = tokens + more, elapsed + took
    return tokens / max(elapsed, 1e-9)


def _score(engine: Engine, most: int, length: int) -> int:
    """Scores a batch of random tokens: at most `most` tokens, but at least one sequence."""
    facts = engine.facts
    num_sequences = max(1, most // length)
    ids = np.random.default_rng(0).integers(facts.logit_width, size=(num_sequences, length))
    wanted = Representation("top_k", top_k=min(_TOP_K, facts.logit_width))
    asked = np.ones(length, bool)
    asks = [
        SequenceAsk(row.astype(np.uint32), asked, facts.logit_width, wanted, temperature=1.0)
        for row in ids
    ]
    engine.score([base_ask(ask, facts) for ask in asks])
    return num_sequences * length
