"""The section rollout: what is accepted, and what is refused with which fields."""

from typing import Any

import pytest

from lectern_common.errors import InvalidSpec
from lectern_common.spec.forking import forked_spec
from lectern_common.spec.load import dump_spec, parse_spec
from lectern_common.spec.run_spec import RunSpec, require_resumable


def body(**sections: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "coder",
        "teacher": {},
        "student": {"init": "small"},
        "data": {"path": "text"},
        "objective": {"alpha": 0},
        "rollout": {"fraction": 1, "prompts": "set"},
    }
    for name, values in sections.items():
        merge = isinstance(values, dict) and isinstance(base.get(name), dict)
        base[name] = {**base[name], **values} if merge else values
    return {name: values for name, values in base.items() if values is not None}


def spec_of(**sections: Any) -> RunSpec:
    return parse_spec(body(**sections))


def fields_of(**sections: Any) -> set[str]:
    with pytest.raises(InvalidSpec) as caught:
        spec_of(**sections)
    return {field for field, _ in caught.value.problems}


def test_the_defaults_are_in_the_resolved_spec() -> None:
    rollout = spec_of().model_dump()["rollout"]
    assert rollout == {
        "fraction": 1,
        "prompts": "set",
        "prompt_tokens": None,
        "max_new_tokens": 512,
        "temperature": 1,
        "top_p": 1,
        "top_k": 0,
        "samples_per_prompt": 1,
        "stale_steps": 0,
        "engine": "local",
        "keep": True,
    }
    assert parse_spec(body(rollout=None)).rollout is None
    assert "rollout: null" in dump_spec(parse_spec(body(rollout=None)))


@pytest.mark.parametrize(
    "rollout",
    [
        {"fraction": 0},
        {"fraction": -0.1},
        {"fraction": 1.01},
        {"fraction": float("nan")},
        {"fraction": True},
        {"fraction": None},
        {"max_new_tokens": 0},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"samples_per_prompt": 0},
        {"stale_steps": 2},
        {"stale_steps": -1},
        {"stale_steps": True},
        {"engine": "vllm"},
        {"prompts": "../set"},
        {"prompts": "/set"},
        {"prompts": ""},
        {"beta": 1},
    ],
)
def test_a_value_out_of_bounds_is_named(rollout: dict[str, Any]) -> None:
    (name,) = rollout
    assert fields_of(rollout=rollout) == {f"rollout.{name}"}


def test_the_fraction_is_required() -> None:
    with pytest.raises(InvalidSpec, match=r"rollout\.fraction: required"):
        parse_spec({**body(), "rollout": {"prompts": "set"}})


@pytest.mark.parametrize("source", [{"prompts": None}, {"prompt_tokens": 4}])
def test_exactly_one_source_of_prompts_is_named(source: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match="exactly one of prompts"):
        spec_of(rollout=source)
    spec_of(rollout={"prompts": None, "prompt_tokens": 4})


@pytest.mark.parametrize(
    "rollout", [{"top_p": 0.9}, {"top_k": 5}, {"samples_per_prompt": 2}], ids=str
)
def test_greedy_texts_take_no_sampling(rollout: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match="temperature 0"):
        spec_of(rollout={"temperature": 0, **rollout})
    spec_of(rollout={"temperature": 0})
    spec_of(rollout=rollout)


@pytest.mark.parametrize("alpha", [0.001, 0.3, 0.999])
def test_cross_entropy_needs_rows_of_data(alpha: float) -> None:
    found = fields_of(objective={"alpha": alpha})
    assert found == {"rollout.fraction", "objective.alpha"}
    spec_of(objective={"alpha": alpha}, rollout={"fraction": 0.999})


def test_a_run_without_a_teacher_writes_nothing() -> None:
    assert "rollout" in fields_of(teacher=None, objective={"alpha": 1})


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd"])
@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_sparse_answers_serve_only_forward_kl(divergence: str, kind: str) -> None:
    found = fields_of(objective={"divergence": divergence}, teacher={"representation": kind})
    assert found == {"objective.divergence", "teacher.representation"}
    spec_of(objective={"divergence": "forward_kl"}, teacher={"representation": kind})
    for whole in ("hidden", "dense"):
        spec_of(objective={"divergence": divergence}, teacher={"representation": whole})
    if kind == "top_k":  # as ever, if all rows are known before
        sections = {"objective": {"divergence": divergence}, "teacher": {"representation": kind}}
        spec_of(rollout=None, **sections)


@pytest.mark.parametrize("name", ["record", "record_to"])
def test_records_know_nothing_of_rollouts(name: str) -> None:
    assert fields_of(teacher={name: "answers"}) == {f"teacher.{name}", "rollout"}


@pytest.mark.parametrize(("rows", "samples"), [(8, 3), (4, 8), (9, 2)])
def test_samples_divide_the_rows_of_a_step(rows: int, samples: int) -> None:
    batch = {"sequences_per_step": rows}
    found = fields_of(batch=batch, rollout={"samples_per_prompt": samples})
    assert found == {"rollout.samples_per_prompt", "batch.sequences_per_step"}
    spec_of(batch={"sequences_per_step": rows * samples}, rollout={"samples_per_prompt": samples})


def test_a_row_has_at_least_the_tokens_of_a_prompt() -> None:
    rollout = {"prompts": None, "prompt_tokens": 17}
    found = fields_of(data={"seq_len": 16}, rollout=rollout)
    assert found == {"rollout.prompt_tokens", "data.seq_len"}
    spec_of(data={"seq_len": 17}, rollout=rollout)


def test_a_resume_may_change_only_what_is_kept_to_read() -> None:
    old = spec_of()
    require_resumable(old, spec_of(rollout={"keep": False}), 5)
    for changed in (
        {"fraction": 0.5},
        {"max_new_tokens": 7},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"top_k": 3},
        {"samples_per_prompt": 2},
        {"prompts": "other"},
        {"stale_steps": 1},
    ):
        (name,) = changed
        with pytest.raises(InvalidSpec, match=rf"rollout\.{name}: was"):
            require_resumable(old, spec_of(rollout=changed), 5)
    for one, other in ((old, spec_of(rollout=None)), (spec_of(rollout=None), old)):
        with pytest.raises(InvalidSpec, match="rollout: was"):
            require_resumable(one, other, 5)


def test_a_fork_names_another_source_of_prompts() -> None:
    source = spec_of()
    fork = forked_spec(source, {"rollout": {"prompt_tokens": 9}}, 1)
    assert fork.rollout is not None
    assert (fork.rollout.prompts, fork.rollout.prompt_tokens) == (None, 9)
    back = forked_spec(fork, {"rollout": {"prompts": "set"}}, 1)
    assert back.rollout is not None
    assert (back.rollout.prompts, back.rollout.prompt_tokens) == ("set", None)
    assert forked_spec(source, {"rollout": None}, 1).rollout is None
