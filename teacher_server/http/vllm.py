"""The routes of vLLM that score: POST /v1/completions and POST /inference/v1/generate.

Legend: S tokens of one sequence, K top-k, A candidate ids of a row.
"""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lectern_common.errors import NotFound
from teacher_server.engine.seam import ModelFacts
from teacher_server.http.fields import Fields, sequences_of, token_ids
from teacher_server.http.question import Candidates, Question, Scored
from teacher_server.rpc.limits import Limits

# What stands for -inf in a reply: JSON has no infinity.
NO_PROBABILITY = -9999.0

# So many places of candidate rows may be padding, besides three for each id that is sent.
_FREE_PADDING = 1 << 20

# Fields of sampling that do nothing if nothing is written, at any value.
_FREE = (
    *("seed", "stop", "stop_token_ids", "include_stop_str_in_output", "ignore_eos"),
    *("skip_special_tokens", "spaces_between_special_tokens", "detokenize"),
)
# Fields that would ask for something else, but for these values.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (),
    "logprob_token_ids": (),
    "min_tokens": (0, 1),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "truncate_prompt_tokens": (),
    "structured_outputs": (),
    "extra_args": ({},),
    "flat_logprobs": (False,),
}
_REQUEST_FREE = ("priority", "cache_salt")
_REQUEST_NEUTRAL: dict[str, tuple[object, ...]] = {
    "stream": (False,),
    "stream_options": (),
    "return_token_ids": (False,),
    "kv_transfer_params": (),
    "ec_transfer_params": (),
}
_COMPLETION_NEUTRAL: dict[str, tuple[object, ...]] = {
    "echo": (False,),
    "suffix": ("",),
    "prompt_embeds": (),
    "add_special_tokens": (True, False),  # there is no text to add them to
    "return_tokens_as_token_ids": (True, False),
    "response_format": (),
}
_GENERATE_NEUTRAL: dict[str, tuple[object, ...]] = {
    "output_mode": ("tokens",),
    "features": (),
    "content_parts": (),
    "token_offsets": (),
}


def completion(fields: Fields, facts: ModelFacts, limits: Limits) -> Question:
    """Returns what a body of /v1/completions asks.

    Raises:
        InvalidRequest: a field is invalid, or would have text written; names it.
        NotFound: it asks for another model.
    """
    _require_model(fields, facts)
    sequences, is_list = sequences_of(fields, "prompt", facts, limits)
    fields.writes_nothing("max_tokens", "16")
    top_k = _top_k(fields, facts, limits)
    if top_k is None:
        raise fields.refusal(
            "prompt_logprobs", "is missing: set how many of the likeliest ids to list, 0 or more"
        )
    question = Question(
        sequences,
        "prompt",
        fields.temperature(),
        top_k,
        is_list=is_list,
        request_id=fields.text("request_id"),
        user=fields.text("user"),
    )
    fields.finish({**_NEUTRAL, **_REQUEST_NEUTRAL, **_COMPLETION_NEUTRAL}, (*_FREE, *_REQUEST_FREE))
    return question


def generate(fields: Fields, facts: ModelFacts, limits: Limits) -> Question:
    """Returns what a body of /inference/v1/generate asks; raises as `completion`."""
    _require_model(fields, facts)
    given, _ = sequences_of(fields, "token_ids", facts, limits)
    if len(given) != 1:
        raise fields.refusal("token_ids", "has several sequences; this route takes one")
    sampling = fields.within("sampling_params")
    sampling.writes_nothing("max_tokens", "16")
    temperature = sampling.temperature()
    top_k = _top_k(sampling, facts, limits)
    candidates = _candidates(sampling, given[0], facts, limits)
    if top_k is None and candidates is None:
        raise sampling.refusal(
            "prompt_logprobs",
            "is missing, and prompt_logprob_token_ids too: set one, or nothing is asked",
        )
    sampling.finish(_NEUTRAL, _FREE)
    question = Question(
        given,
        "token_ids",
        temperature,
        top_k,
        first_row=0 if top_k is not None or candidates is None else candidates.first_row,
        candidates=candidates,
        request_id=fields.text("request_id"),
    )
    fields.finish({**_REQUEST_NEUTRAL, **_GENERATE_NEUTRAL}, _REQUEST_FREE)
    return question


def completion_reply(
    question: Question, answers: Sequence[Scored | None], facts: ModelFacts, created: int
) -> Iterator[str]:
    """Yields the reply of /v1/completions, in pieces; an answer is None where no row was asked."""
    head = {
        "id": f"cmpl-{question.request_id}",
        "object": "text_completion",
        "created": created,
        "model": facts.model_id,
    }
    yield f'{json.dumps(head)[:-1]},"choices":['
    for index, answer in enumerate(answers):
        comma = "," if index else ""
        yield f'{comma}{{"index":{index},"text":"","logprobs":null,"finish_reason":"length",'
        yield '"stop_reason":null,"prompt_logprobs":'
        yield from _prompt_logprobs(answer)
        yield "}"
    yield f'],"usage":{json.dumps(_usage(question))}}}'


def generate_reply(
    question: Question, answers: Sequence[Scored | None], facts: ModelFacts, created: int
) -> Iterator[str]:
    """Yields the reply of /inference/v1/generate, in pieces."""
    (answer,) = answers
    head = {
        "request_id": question.request_id,
        "model": facts.model_id,
        "created": created,
        "choices": [{"index": 0, "logprobs": None, "finish_reason": "length", "token_ids": []}],
        "usage": _usage(question),
        "kv_transfer_params": None,
        "prompt_token_id_logprobs": _candidate_npy(question, answer),
    }
    yield f'{json.dumps(head)[:-1]},"prompt_logprobs":'
    if question.top_k is None:
        yield "null"
    else:
        yield from _prompt_logprobs(answer)
    yield "}"


def model_list(facts: ModelFacts, limits: Limits, created: int) -> dict[str, Any]:
    """Returns the reply of GET /v1/models."""
    model = {
        "id": facts.model_id,
        "object": "model",
        "created": created,
        "owned_by": "lectern",
        "root": facts.model_id,
        "parent": None,
        "max_model_len": limits.max_sequence_tokens,
        "permission": [],
    }
    return {"object": "list", "data": [model]}


def finite(log_probs: npt.NDArray[np.float64]) -> list[Any]:
    """Returns log-probabilities as nested lists, with NO_PROBABILITY for -inf."""
    told: list[Any] = np.where(np.isneginf(log_probs), NO_PROBABILITY, log_probs).tolist()
    return told


def _require_model(fields: Fields, facts: ModelFacts) -> None:
    model = fields.take("model")
    if model is not None and model != facts.model_id:
        raise NotFound(
            f"model is not the one served here, {facts.model_id}; GET /v1/models names it"
        )


def _top_k(fields: Fields, facts: ModelFacts, limits: Limits) -> int | None:
    most = min(facts.logit_width, limits.max_top_k)
    return fields.whole(
        "prompt_logprobs", 0, most, ", the smaller of the vocabulary and the server's --max-top-k"
    )


def _candidates(
    fields: Fields, ids_S: npt.NDArray[np.uint32], facts: ModelFacts, limits: Limits
) -> Candidates | None:
    field = "prompt_logprob_token_ids"
    rows = fields.take(field)
    first_row = fields.whole("prompt_logprob_start", 0, len(ids_S) - 1, ", a row of the sequence")
    if rows is None:
        if first_row is not None:
            raise fields.refusal("prompt_logprob_start", f"has no effect without {field}")
        return None
    first_row = first_row or 0
    num_rows = len(ids_S) - 1 - first_row
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise fields.refusal(field, "must be a list with one list of token ids for each row")
    if len(rows) != num_rows:
        raise fields.refusal(
            field,
            f"has {len(rows)} rows; {num_rows} are scored: the tokens but the first, from "
            "prompt_logprob_start on",
        )
    longest = max(map(len, rows), default=0)
    most = min(facts.logit_width, limits.max_top_k)
    if not 1 <= longest <= most:
        raise fields.refusal(
            field,
            f"has a longest row of {longest} ids; it must have 1 to {most}, the smaller of the "
            "vocabulary and the server's --max-top-k",
        )
    sent = sum(map(len, rows))
    if num_rows * longest > 4 * sent + _FREE_PADDING:  # a small body would fill the memory
        raise fields.refusal(
            field,
            f"has {num_rows} rows and a longest of {longest} ids, to which all are padded, but "
            f"only {sent} ids; ask for the longer rows in a request of their own",
        )
    padded = np.full((num_rows, longest), -1, np.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = token_ids(fields, f"{field}[{index}]", row, -1, facts)
    return Candidates(padded, first_row)


def _candidate_npy(question: Question, answer: Scored | None) -> str | None:
    """Returns base64 of a .npy file with the candidates' log-probabilities, float32 [rows, ids]."""
    if question.candidates is None or answer is None or answer.candidate_log_probs_NA is None:
        return None
    file = io.BytesIO()
    np.save(file, answer.candidate_log_probs_NA.astype("<f4"), allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _usage(question: Question) -> dict[str, int]:
    tokens = sum(map(len, question.sequences))
    return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}


_ENTRY = '"%d":{"logprob":%.9g,"rank":%d,"decoded_token":null}'


def _prompt_logprobs(answer: Scored | None) -> Iterator[str]:
    """Yields null for the first token, then an object for each: the realised token is first."""
    yield "[null"
    if answer is not None:
        formats: dict[int, str] = {}
        for own_id, own_log_prob, own_rank, ids, log_probs in zip(
            answer.own_ids_N.tolist(),
            finite(answer.own_log_probs_N),
            answer.own_ranks_N.tolist(),
            answer.top_ids_NK.tolist(),
            finite(answer.top_log_probs_NK),
            strict=True,
        ):
            values = [own_id, own_log_prob, own_rank]
            for rank, (token_id, log_prob) in enumerate(zip(ids, log_probs, strict=True), 1):
                if token_id != own_id:
                    values += (token_id, log_prob, rank)
            count = len(values) // 3
            if count not in formats:
                formats[count] = ",{" + ",".join([_ENTRY] * count) + "}"
            yield formats[count] % tuple(values)
    yield "]"
