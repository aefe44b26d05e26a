"""A teacher without a model, for tests: it predicts that each token repeats.

Legend: N asked rows, V asked vocabulary, K top-k, A ids asked beside the K.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from lectern_common.wire.formats import top_k_record
from teacher_server.engine.seam import (
    REPRESENTATION_VERSION,
    ComputedRows,
    HeadFacts,
    ModelFacts,
    SequenceAsk,
    beside_record,
)

_PEAK = 10.0


class FixtureEngine:
    """Logits are 10 at the input token (at id 0 if that is outside the vocabulary), else 0."""

    def __init__(self, vocab_size: int) -> None:
        name = f"fixture-{vocab_size}"
        weights = hashlib.sha256(name.encode()).hexdigest()
        stamp = f"{weights} {REPRESENTATION_VERSION}"
        self._facts = ModelFacts(
            model_id=name,
            revision="",
            weights_sha256=weights,
            fingerprint=hashlib.sha256(stamp.encode()).hexdigest(),
            logit_width=vocab_size,
            tokens=None,
            max_positions=None,
            hidden_size=0,
            hidden_dtype="float32",
            dtype="float32",
            quantization="none",
            device="cpu",
            head=HeadFacts(),
            not_offered={
                "dense": None,
                "hidden": "the fixture has no model, so no hidden states",
                "top_k": None,
                "sampled": "the fixture draws no samples",
            },
            engine="fixture",
            mode="independent",
            num_parameters=0,
        )

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def score(self, asks: Sequence[SequenceAsk]) -> list[ComputedRows]:
        """Returns the asked rows; see Engine."""
        return [ComputedRows(self._rows(ask)) for ask in asks]

    def derived(
        self, rows: ComputedRows, ask: SequenceAsk, wanted: Callable[[], bool]
    ) -> ComputedRows:
        """Never called: the fixture does not offer `hidden`."""
        raise NotImplementedError

    def _rows(self, ask: SequenceAsk) -> memoryview:
        tokens_N = ask.token_ids_S[ask.asked_S].astype(np.int64)
        peaks_N = np.where(tokens_N < ask.vocab_size, tokens_N, 0)
        if ask.representation.kind == "dense":
            logits_NV = np.zeros((len(peaks_N), ask.vocab_size), "<f4")
            logits_NV[np.arange(len(peaks_N)), peaks_N] = _PEAK
            return logits_NV.data.cast("B")
        if ask.also_NA is not None:
            return self._beside(peaks_N, ask, ask.also_NA).view(np.uint8).data
        return self._top_k(peaks_N, ask).view(np.uint8).data

    def head_bytes(self, vocab_size: int) -> Sequence[memoryview]:
        """Never called: the fixture does not offer `hidden`."""
        raise NotImplementedError

    def _top_k(self, peaks_N: npt.NDArray[np.int64], ask: SequenceAsk) -> np.ndarray:
        k, others = ask.representation.top_k or 0, ask.vocab_size - 1
        records_N = np.zeros(len(peaks_N), top_k_record(k))
        records_N["logits"][:, 0] = _PEAK
        records_N["ids"][:, 0] = peaks_N
        # All other logits are equal, so their ids rise, without the peak's.
        rising_K = np.arange(k - 1)
        records_N["ids"][:, 1:] = rising_K + (rising_K >= peaks_N[:, None])
        left_out = ask.vocab_size - k  # all have logit 0: the peak is among the k
        records_N["log_rest_t"] = np.log(left_out) if left_out else -np.inf
        scaled = _PEAK / ask.temperature  # factored out of the logarithm: it may be large
        records_N["log_normalizer_t"] = scaled + np.log1p(others * np.exp(-scaled))
        return records_N

    def _beside(
        self, peaks_N: npt.NDArray[np.int64], ask: SequenceAsk, also_NA: npt.NDArray[np.uint32]
    ) -> np.ndarray:
        top_N = self._top_k(peaks_N, ask)
        records_N = np.empty(
            len(peaks_N), beside_record(ask.representation.top_k or 0, also_NA.shape[1])
        )
        records_N["top"] = top_N
        records_N["logits"] = np.where(also_NA == peaks_N[:, None], _PEAK, 0.0)
        first_N = also_NA[:, 0].astype(np.int64)
        # Behind the peak by rising id, and the ids above the peak's are one place further up.
        behind_N = first_N + 2 - (first_N > peaks_N)
        records_N["rank"] = np.where(first_N == peaks_N, 1, behind_N)
        return records_N
