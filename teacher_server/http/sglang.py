"""The route of SGLang that scores: POST /generate."""

import json
from collections.abc import Iterator, Sequence

from teacher_server.engine.seam import ModelFacts
from teacher_server.http.fields import Fields, sequences_of
from teacher_server.http.question import Question, Scored
from teacher_server.http.vllm import finite
from teacher_server.rpc.limits import Limits

_FREE = (
    *("stop", "stop_token_ids", "stop_regex", "ignore_eos", "no_stop_trim"),
    *("skip_special_tokens", "spaces_between_special_tokens", "sampling_seed"),
)
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "min_new_tokens": (0,),
    "top_p": (1,),
    "top_k": (-1, 1 << 30),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "structural_tag": (),
    "logit_bias": ({},),
    "custom_params": ({},),
}
_REQUEST_FREE = ("log_metrics", "priority", "session_id", "routing_key")
_REQUEST_NEUTRAL: dict[str, tuple[object, ...]] = {
    "text": (),
    "input_embeds": (),
    "image_data": ([],),
    "video_data": ([],),
    "audio_data": ([],),
    "token_ids_logprob": (),
    "return_text_in_logprobs": (False,),
    "return_flat_raw_top_logprobs": (False,),
    "return_flat_raw_output_top_logprobs": (False,),
    "return_flat_raw_top_logprobs_b64": (False,),
    "return_hidden_states": (False,),
    "return_routed_experts": (False,),
    "return_sampling_mask": (False,),
    "stream": (False,),
    "lora_path": (),
}


def generate(fields: Fields, facts: ModelFacts, limits: Limits) -> Question:
    """Returns what a body of /generate asks.

    Raises:
        InvalidRequest: a field is invalid, or would have text written; names it.
    """
    sequences, is_list = sequences_of(fields, "input_ids", facts, limits)
    sampling = fields.within("sampling_params")
    sampling.writes_nothing("max_new_tokens", "128")
    temperature = sampling.temperature()
    sampling.finish(_NEUTRAL, _FREE)
    if fields.take("return_logprob") is not True:
        raise fields.refusal("return_logprob", "must be true, or nothing is asked")
    shortest = min(map(len, sequences))
    start = fields.whole("logprob_start_len", 0, shortest - 1, ", a token of every sequence")
    if start is None:
        raise fields.refusal(
            "logprob_start_len",
            "is missing, which means only the tokens that are written; set 0 for all that is given",
        )
    top_k = fields.whole(
        "top_logprobs_num",
        0,
        min(facts.logit_width, limits.max_top_k),
        ", the smaller of the vocabulary and the server's --max-top-k",
    )
    question = Question(
        sequences,
        "input_ids",
        temperature,
        top_k or 0,
        first_row=start,
        is_list=is_list,
        request_id=fields.text("rid"),
    )
    fields.finish(_REQUEST_NEUTRAL, _REQUEST_FREE)
    return question


def generate_reply(
    question: Question, answers: Sequence[Scored | None], _facts: ModelFacts, _created: int
) -> Iterator[str]:
    """Yields the reply, in pieces: an object, or a list of them if a list was asked."""
    yield "[" if question.is_list else ""
    for index, (ids_S, answer) in enumerate(zip(question.sequences, answers, strict=True)):
        # The first token that is told has no log-probability, as if nothing stood before it.
        first = int(ids_S[question.first_row])
        name = f"{question.request_id}_{index}" if question.is_list else question.request_id
        head = {
            "id": name,
            "finish_reason": {"type": "length", "length": 0},
            "prompt_tokens": len(ids_S),
            "completion_tokens": 0,
            "cached_tokens": 0,
        }
        yield "," if index else ""
        yield f'{{"text":"","output_ids":[],"meta_info":{json.dumps(head)[:-1]},'
        yield f'"input_token_logprobs":[[null,{first},null]'
        if answer is not None:
            own = zip(finite(answer.own_log_probs_N), answer.own_ids_N.tolist(), strict=True)
            for pair in own:
                yield f",[{pair[0]:.9g},{pair[1]},null]"
        yield '],"output_token_logprobs":[],"output_token_logprobs_length":0'
        if question.top_k:
            yield ',"input_top_logprobs":[null'
            yield from _top(answer, question.top_k)
            yield '],"output_top_logprobs":[]'
        yield "}}"
    yield "]" if question.is_list else ""


def _top(answer: Scored | None, top_k: int) -> Iterator[str]:
    if answer is None:
        return
    row = ",[" + ",".join(["[%.9g,%d,null]"] * top_k) + "]"
    for ids, log_probs in zip(
        answer.top_ids_NK.tolist(), finite(answer.top_log_probs_NK), strict=True
    ):
        values: list[float] = []
        for token_id, log_prob in zip(ids, log_probs, strict=True):
            values += (log_prob, token_id)
        yield row % tuple(values)
