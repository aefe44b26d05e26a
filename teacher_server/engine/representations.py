"""Turns hidden states or logits into rows of bytes, a block of rows at a time.

Legend: S tokens, N asked rows, C rows of a block, V asked vocabulary, D hidden size, K top-k,
A ids asked beside the K.

Every function takes logits that are already sliced to the asked vocabulary, so no id beyond it
takes part in a softmax.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lectern_common.wire.formats import CARRIERS, pack_sampled, top_k_record
from lectern_models.logits.blocks import (
    AskedLogits,
    block_logits,
    draws_of,
    first_bad_row,
    top_k_of,
    values_and_ranks,
)
from lectern_models.logits.output_head import OutputHead
from lectern_models.logits.sampled import uniforms
from teacher_server.engine.seam import ComputedRows, NoLongerWanted, SequenceAsk, beside_record


def rows_of_hidden(
    hidden_SD: Tensor, head: OutputHead, ask: SequenceAsk, wanted: Callable[[], bool]
) -> ComputedRows:
    """Returns the answer to any ask but one for "hidden", computed from hidden states.

    Args:
        hidden_SD: hidden states of all positions, on the head's device.
        head: sliced to the asked vocabulary.
        ask: what to compute.
        wanted: called before each block; False means that no client waits any more.

    Raises:
        NoLongerWanted: no client waits any more.
        TeacherError, InvalidRequest: as rows_of_logits.
    """

    def of_block(start: int) -> Tensor:
        if not wanted():
            raise NoLongerWanted
        return block_logits(head, hidden_SD, start)

    return rows_of_logits(AskedLogits(ask.asked_S, hidden_SD.device.type, of_block), ask)


def rows_of_logits(logits: AskedLogits, ask: SequenceAsk) -> ComputedRows:
    """Returns the answer to an ask for "dense", "top_k" or "sampled".

    Raises:
        TeacherError: as AskedLogits.blocks.
        InvalidRequest: logits / temperature leave float32's range.
    """
    return _OF_LOGITS[ask.representation.kind](logits, ask)


def hidden_rows(hidden_SD: Tensor) -> ComputedRows:
    """Returns the bits of the hidden states, whatever their dtype, in memory of their own."""
    return ComputedRows(bits(hidden_SD).data.cast("B"), first_bad_row=first_bad_row(hidden_SD))


def _dense_rows(logits: AskedLogits, ask: SequenceAsk) -> ComputedRows:
    """float32 logits [N, V]."""
    rows_NV = np.empty((ask.num_rows, ask.vocab_size), "<f4")
    for block in logits.blocks():
        rows_NV[block.rows] = block.taken(block.logits_CV).cpu().numpy()
    return ComputedRows(rows_NV.data.cast("B"))


def _top_k_rows(logits: AskedLogits, ask: SequenceAsk) -> ComputedRows:
    """N records of `top_k_record(k)`, or `beside_record`. Equal logits: the lower id is first."""
    k = ask.representation.top_k or 0
    also_NA = ask.also_NA
    record = top_k_record(k) if also_NA is None else beside_record(k, also_NA.shape[1])
    records_N = np.empty(ask.num_rows, record)
    top_N = records_N if also_NA is None else records_N["top"]
    names = ("logits", "ids", "log_rest_t", "log_normalizer_t")
    for block in logits.blocks():
        for name, values in zip(names, top_k_of(block, k, ask.temperature), strict=True):
            top_N[block.rows][name] = values.cpu().numpy()
        if also_NA is not None:
            values, ranks = values_and_ranks(block, also_NA[block.rows].astype(np.int64))
            records_N["logits"][block.rows] = values.cpu().numpy()
            records_N["rank"][block.rows] = ranks.cpu().numpy()
    return ComputedRows(records_N.view(np.uint8).data)


def _sampled_rows(logits: AskedLogits, ask: SequenceAsk) -> ComputedRows:
    """Records of `sampled_record()`, by rising id within a row, and their number in each row."""
    asked = ask.representation
    seed, num_draws = asked.seed or 0, asked.num_draws or 0
    uniforms_NU = uniforms(seed, ask.token_ids_S, ask.asked_S, num_draws)
    records, lengths = [], []
    for block in logits.blocks():
        draws = draws_of(block, uniforms_NU, ask.temperature)
        parts = (draws.ids_R, draws.counts_R, draws.log_probs_R)
        records.append(pack_sampled(*(part.cpu().numpy() for part in parts)))
        lengths.append(draws.row_lengths_C.cpu().numpy().astype(np.uint32))
    return ComputedRows(np.concatenate(records).view(np.uint8).data, np.concatenate(lengths))


# All but "hidden", whose rows are the hidden states themselves.
_OF_LOGITS: dict[str, Callable[[AskedLogits, SequenceAsk], ComputedRows]] = {
    "dense": _dense_rows,
    "top_k": _top_k_rows,
    "sampled": _sampled_rows,
}


def bits(values: Tensor) -> np.ndarray:
    """Returns the tensor on the CPU as numpy; bfloat16, which numpy lacks, as its bit patterns."""
    values = values.detach().cpu().contiguous()
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def from_bits(payload: memoryview, dtype: str, num_rows: int) -> Tensor:
    """Returns the rows whose bytes `bits` made, sharing their memory."""
    carried = torch.from_numpy(np.frombuffer(payload, CARRIERS[dtype]).reshape(num_rows, -1))
    return carried.view(torch.bfloat16) if dtype == "bfloat16" else carried
