"""The run spec: what is accepted, what is refused with which message, what a resume may change."""

import math
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lectern_common.errors import Conflict, InvalidSpec
from lectern_common.spec.load import SMALLEST, continuing, dump_spec, load_spec, parse_spec
from lectern_common.spec.run_spec import (
    RESUME_MAY_CHANGE,
    RunSpec,
    require_more_to_do,
    require_resumable,
    resume_differences,
)
from lectern_common.wire.formats import MAX_DRAWS


def body(**sections: Any) -> dict[str, Any]:
    base = {
        "name": "coder",
        "teacher": {},
        "student": {"init": "small"},
        "data": {"path": "text"},
    }
    return {**base, **sections}


def problems(**sections: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(body(**sections))
    return caught.value.problems


def test_every_default_is_visible_in_the_dumped_spec() -> None:
    text = dump_spec(parse_spec(body()))
    for field in RunSpec.model_fields:
        assert f"{field}:" in text
    assert "validation_fraction: 0.01" in text
    assert "micro_batch_sequences: 8" in text


def test_a_dumped_spec_reads_back_equal(tmp_path: Path) -> None:
    spec = parse_spec(body(teacher={"representation": "top_k"}, objective={"divergence": "jsd"}))
    (tmp_path / "spec.yaml").write_text(dump_spec(spec))
    assert load_spec(tmp_path / "spec.yaml") == spec
    assert spec.teacher is not None and spec.teacher.top_k == 64
    assert spec.objective.beta == 0.5
    assert spec.teacher.num_draws is None


def test_an_empty_file_is_refused_with_an_example_that_is_a_spec(tmp_path: Path) -> None:
    for text in ("", "# later\n", "[]"):
        (tmp_path / "spec.yaml").write_text(text)
        with pytest.raises(InvalidSpec, match=r"docs/run-spec.md") as caught:
            load_spec(tmp_path / "spec.yaml")
        assert str(caught.value).endswith(SMALLEST)
    (tmp_path / "spec.yaml").write_text(SMALLEST)
    assert load_spec(tmp_path / "spec.yaml").teacher is not None


def test_a_wrong_name_is_refused_with_the_rule_for_names() -> None:
    for name in ("My_Run", "-x", "", "a" * 64):
        assert problems(name=name) == [
            (
                "name",
                "must be lower-case letters, digits and hyphens, at most 63, beginning with a "
                f"letter or digit; {name!r} is not",
            )
        ]


def test_several_devices_share_the_rows_of_a_step() -> None:
    batch = {"sequences_per_step": 24, "micro_batch_sequences": 4}
    spec = parse_spec(body(batch=batch, device={"count": 3}))
    assert (spec.rows_per_device, spec.micro_batch, spec.device.max_restarts) == (8, 4, 3)
    one = parse_spec(body(batch=batch))
    assert (one.rows_per_device, one.micro_batch, one.device.max_restarts) == (24, 4, None)
    assert resume_differences(one, spec) == []
    whole = parse_spec(body(device={"count": 4}))
    assert whole.micro_batch == 2  # all rows of a device, if the spec does not say


@pytest.mark.parametrize(("given", "resolved"), [({}, 50), ({"num_draws": MAX_DRAWS}, MAX_DRAWS)])
def test_draws_are_50_by_default_and_visible(given: dict[str, int], resolved: int) -> None:
    spec = parse_spec(body(teacher={"representation": "sampled", **given}))
    assert spec.teacher is not None and spec.teacher.num_draws == resolved
    assert f"num_draws: {resolved}" in dump_spec(spec)
    other = parse_spec(body(teacher={"representation": "sampled", "num_draws": 7}))
    assert resume_differences(spec, other) == [("teacher.num_draws", resolved, 7)]


@pytest.mark.parametrize(
    ("sections", "field", "word"),
    [
        ({"objective": {"temprature": 2}}, "objective.temprature", "did you mean temperature"),
        ({"teacher": {"adress": "a:1"}}, "teacher.adress", "did you mean address"),
        ({"nmae": "x"}, "nmae", "did you mean name"),
        ({"objective": {"temperature": 0}}, "objective.temperature", "expected more than 0, got 0"),
        ({"objective": {"temperature": math.inf}}, "objective.temperature", "finite"),
        ({"objective": {"temperature": "nan"}}, "objective.temperature", "finite"),
        ({"objective": {"alpha": 1.5}}, "objective.alpha", "expected at most 1, got 1.5"),
        ({"objective": {"beta": 0.5}}, "objective", "beta has no effect"),
        (
            {"objective": {"alpha": 1, "temperature": 9}},
            "objective",
            "temperature has no effect with objective.alpha 1 (only cross entropy); remove it",
        ),
        (
            {"objective": {"alpha": 1, "divergence": "jsd"}},
            "objective",
            "divergence has no effect with objective.alpha 1",
        ),
        (
            {"schedule": {"decay": "constant", "final_fraction": 0.5}},
            "schedule",
            "final_fraction has no effect with decay constant",
        ),
        (
            {"data": {"path": "text", "validation_path": "./text"}},
            "data",
            "the run would be validated on its training rows",
        ),
        ({"teacher": {"top_k": 8}}, "teacher", "top_k has no effect"),
        ({"teacher": {"num_draws": 8}}, "teacher", "num_draws has no effect"),
        (
            {"teacher": {"representation": "sampled", "top_k": 8}},
            "teacher",
            "top_k has no effect with representation sampled",
        ),
        (
            {"teacher": {"representation": "sampled", "num_draws": 0}},
            "teacher.num_draws",
            "expected at least 1, got 0",
        ),
        (
            {"teacher": {"representation": "sampled", "num_draws": MAX_DRAWS + 1}},
            "teacher.num_draws",
            f"expected at most {MAX_DRAWS}, got",
        ),
        (
            {"teacher": {"representation": "sampled"}, "objective": {"divergence": "reverse_kl"}},
            "objective.divergence",
            "set divergence forward_kl, or representation hidden or top_k",
        ),
        (
            {"teacher": {"representation": "sampled"}, "objective": {"divergence": "jsd"}},
            "objective.divergence",
            "divergence jsd needs the teacher's probability of every token",
        ),
        ({"teacher": {"address": "nowhere"}}, "teacher.address", "host:port"),
        ({"teacher": {"address": "a:0"}}, "teacher.address", "host:port"),
        ({"teacher": {"token_file": "../key"}}, "teacher.token_file", "relative path"),
        ({"teacher": {"tls_ca_file": "/ca.pem"}}, "teacher.tls_ca_file", "relative path"),
        ({"teacher": {"tls_ca_file": "ca", "tls_cert_file": "c"}}, "teacher", "together"),
        ({"teacher": {"tls_ca_file": "ca", "tls_key_file": "k"}}, "teacher", "together"),
        (
            {"teacher": {"tls_cert_file": "c", "tls_key_file": "k"}},
            "teacher",
            "no effect without tls_ca_file",
        ),
        ({"teacher": {"address": "a:1,a:1"}}, "teacher.address", "names a:1 twice"),
        ({"teacher": None}, "teacher", "teacher is required"),
        ({"objective": {"alpha": 1}}, "teacher", "teacher has no effect"),
        ({"student": {}}, "student", "exactly one of init"),
        ({"student": {"init": "a", "config": "b"}}, "student", "exactly one of init"),
        ({"student": {"init": "/etc/passwd"}}, "student.init", "relative path"),
        ({"student": {"config": "a", "revision": "b"}}, "student", "revision has no effect"),
        ({"data": {"path": "a/../../b"}}, "data.path", "relative path"),
        ({"data": {"path": "a\x00b"}}, "data.path", "control characters"),
        ({"data": {"path": "a/" + "b" * 256}}, "data.path", "255 bytes"),
        ({"data": {}}, "data", "path is required"),
        ({"data": {"kind": "synthetic", "path": "a"}}, "data", "no effect"),
        (
            {"data": {"path": "a", "validation_path": "b", "validation_fraction": 0.1}},
            "data",
            "not both",
        ),
        ({"schedule": {"steps": 10, "warmup_steps": 11}}, "schedule", "exceeds steps"),
        (
            {"batch": {"sequences_per_step": 6, "micro_batch_sequences": 4}},
            "batch",
            "must divide",
        ),
        ({"name": "Upper"}, "name", "lower-case letters"),
        ({"name": "a" * 64}, "name", "lower-case letters"),
        ({"seed": -1}, "seed", "expected at least 0, got -1"),
        ({"device": {"count": 3}}, "device.count", "device.count 3 must divide"),
        (
            {
                "device": {"count": 2},
                "batch": {"sequences_per_step": 12, "micro_batch_sequences": 4},
            },
            "batch.micro_batch_sequences",
            "batch.micro_batch_sequences 4 must divide the rows of each device, 6: ",
        ),
        ({"device": {"max_restarts": 2}}, "device", "no effect with count 1"),
        ({"student": {"config": "a", "lora": {}}}, "student", "lora has no effect"),
        (
            {"student": {"config": "a", "keep_every_nth_layer": 2}},
            "student",
            "keep_every_nth_layer has no effect",
        ),
        (
            {"data": {"kind": "synthetic", "attention_across_documents": False}},
            "data",
            "no effect",
        ),
        ({"evaluation": {"prompt_tokens": 3}}, "evaluation", "no effect without prompts"),
        (
            {"evaluation": {"patience": 3}, "checkpoint": {"keep_best": 0}},
            "evaluation.patience",
            "checkpoint.keep_best 0 keeps none",
        ),
        ({"report_to": ["wandb", "wandb"]}, "report_to", "must not repeat"),
        ({"report_to": ["wanbd"]}, "report_to.0", "or 'wandb', got 'wanbd'; did you mean wandb?"),
        ({"objective": {"divergence": "forwardkl"}}, "objective.divergence", "mean forward_kl?"),
    ],
)
def test_a_bad_field_is_named_with_what_is_wrong(
    sections: dict[str, Any], field: str, word: str
) -> None:
    found = problems(**sections)
    assert found[0][0] == field
    assert word in found[0][1]


def test_a_number_of_devices_is_refused_without_a_word_about_fields_that_are_not_set() -> None:
    found = problems(device={"count": 5})
    message = "device.count 5 must divide batch.sequences_per_step 8"
    assert found == [("device.count", message), ("batch.sequences_per_step", message)]


def test_a_problem_of_several_fields_is_one_sentence_for_people() -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(body(teacher=None))
    assert str(caught.value).startswith("teacher, objective.alpha: teacher is required")
    assert str(caught.value).count("teacher is required") == 1


VALUES: list[Any] = [
    *(None, True, 0, -1, 10**30, 10**400, 1.5, -0.5, float("inf"), float("nan")),
    *("", "x", "1.5", "a b", "../x", "a\0b", "\ud800", "x" * 9000, "9" * 5000, b"x"),
    *([], [1], ["a", "a"], [None], ["x" * 5000], [*map(str, range(30))], {}, {"x": 1}, {1: 2}),
]


def every_field(model: Any = RunSpec, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, one in model.model_fields.items():
        yield (*above, name)
        for option in getattr(one.annotation, "__args__", (one.annotation,)):
            if hasattr(option, "model_fields"):
                yield from every_field(option, (*above, name))


def test_no_value_of_any_field_is_refused_in_the_words_of_a_library() -> None:
    """A wrong value has a sentence of ours, which names the field and what was given."""
    fields = list(every_field())
    known = {".".join(field) for field in fields}
    for path in fields:
        for value in VALUES:
            spec = body()
            section = spec
            for name in path[:-1]:
                section = section.setdefault(name, {})
            section[path[-1]] = value
            try:
                parse_spec(spec)
            except InvalidSpec as error:
                found = error.problems
            else:
                continue
            for field, message in found:
                assert not re.search(r"(Input|String|List|Tuple|Field|Keys|Unable) ", message)
                assert len(message) < 800 and message.isascii()
                named = re.sub(r"\.\d+$|(?<=^teachers)\.x$", "", field)
                assert named in known or message.startswith(("unknown field", "expected a name"))


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"seed": "x"}, ("seed", "expected an integer, got 'x'")),
        ({"seed": 1.5}, ("seed", "expected an integer, got 1.5")),
        ({"notes": 3}, ("notes", "expected text, got 3")),
        ({"device": []}, ("device", "expected a mapping of settings, got a list")),
        (
            {"device": {"compile": "maybe"}},
            ("device.compile", "expected true or false, got 'maybe'"),
        ),
        ({"objective": {"alpha": "much"}}, ("objective.alpha", "expected a number, got 'much'")),
        (
            {"objective": {"chunk_tokens": 0}},
            ("objective.chunk_tokens", "expected more than 0 or 'auto', got 0"),
        ),
        ({"evaluation": {"prompts": "x"}}, ("evaluation.prompts", "expected a list, got 'x'")),
        (
            {"tags": [""]},
            ("tags.0", "must be 1 to 40 characters without spaces and commas; '' is not"),
        ),
        ({"notes": "x" * 5000}, ("notes", "expected at most 4096 characters, got 5000")),
    ],
)
def test_a_wrong_value_is_refused_as_expected_a_got_b(
    sections: dict[str, Any], problem: tuple[str, str]
) -> None:
    assert problems(**sections) == [problem]


def test_all_problems_are_reported_at_once() -> None:
    found = problems(objective={"temperature": 0, "alpha": 2}, seed=-1)
    assert {field for field, _ in found} == {"objective.temperature", "objective.alpha", "seed"}


def test_a_key_given_twice_in_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("name: a\nname: b\n")
    with pytest.raises(InvalidSpec, match="name given twice"):
        load_spec(path)


def test_a_mistake_in_yaml_is_shown_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("name: [a\nseed: 2")
    with pytest.raises(InvalidSpec) as caught:
        load_spec(path)
    assert "line 2, column 5" in str(caught.value)
    assert "byte string" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2", "- a\n- b\n", "\x00", "!!python/object:os.system {}"])
def test_a_file_that_is_not_a_spec_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(InvalidSpec):
        load_spec(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"gone\.yaml"):
        load_spec(tmp_path / "gone.yaml")


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=8), st.lists))
def test_any_value_is_accepted_or_refused_with_invalid_spec(value: Any) -> None:
    for field in ("teacher", "data", "seed", "name", "report_to"):
        try:
            parse_spec(body(**{field: value}))
        except InvalidSpec as error:
            assert error.problems


def test_a_resume_may_change_the_listed_fields_and_nothing_else() -> None:
    old = parse_spec(body())
    new = parse_spec(
        body(
            schedule={"steps": 2000},
            evaluation={"every_steps": 7},
            device={"threads": 2},
            teacher={"address": "elsewhere:1", "deadline_seconds": 3},
        )
    )
    assert resume_differences(old, new) == []
    changed = parse_spec(body(seed=5, optimizer={"learning_rate": 1}, schedule={"warmup_steps": 1}))
    assert resume_differences(old, changed) == [
        ("seed", 0, 5),
        ("optimizer.learning_rate", 1e-4, 1.0),
        ("schedule.warmup_steps", 50, 1),
    ]


@pytest.mark.parametrize(
    ("steps", "warmup_steps"), [(1, 0), (9, 0), (30, 3), (49, 4), (50, 50), (300, 50), (9000, 50)]
)
def test_a_short_run_has_a_shorter_warm_up_and_others_the_usual_one(
    steps: int, warmup_steps: int
) -> None:
    for schedule in ({"steps": steps}, {"steps": steps, "warmup_steps": None}):
        spec = parse_spec(body(schedule=schedule))
        assert spec.schedule.warmup_steps == warmup_steps
        assert f"warmup_steps: {warmup_steps}\n" in dump_spec(spec)
        assert parse_spec(spec.model_dump()) == spec


def test_a_resumed_run_keeps_its_warm_up_unless_another_one_is_set() -> None:
    old = parse_spec(body(schedule={"steps": 30}))
    for left_open in ({}, {"warmup_steps": None}):
        longer = parse_spec(body(schedule={"steps": 400, **left_open}))
        assert continuing(old, longer).schedule.warmup_steps == 3
        assert resume_differences(old, continuing(old, longer)) == []
    given = parse_spec(body(schedule={"steps": 400, "warmup_steps": 50}))
    assert continuing(old, given) == given
    usual = parse_spec(body(schedule={"steps": 400}))
    with pytest.raises(InvalidSpec, match=r"warmup_steps \(50\) exceeds steps \(30\)"):
        continuing(usual, parse_spec(body(schedule={"steps": 30})))


def test_a_field_without_effect_may_have_its_default() -> None:
    only_ce = {"teacher": None, "objective": {"alpha": 1}, "schedule": {"decay": "constant"}}
    spec = parse_spec(body(**only_ce))
    assert parse_spec(spec.model_dump()) == spec
    given = parse_spec(body(**{**only_ce, "objective": {"alpha": 1, "temperature": 2}}))
    assert given == spec


def test_a_resume_may_not_ask_for_fewer_steps_than_the_run_has_made() -> None:
    old, new = (parse_spec(body(schedule={"steps": steps})) for steps in (4000, 600))
    with pytest.raises(InvalidSpec) as caught:
        require_resumable(old, new, 601)
    assert caught.value.problems == [
        ("schedule.steps", "is 600, but the run has already made 601 steps")
    ]
    require_resumable(old, new, 600)
    require_resumable(old, new, None)


def test_a_resume_with_patience_compares_losses_of_the_same_rows() -> None:
    old = parse_spec(body(evaluation={"max_sequences": 10, "patience": 2}))
    new = parse_spec(body(evaluation={"max_sequences": 20, "patience": 2}))
    with pytest.raises(InvalidSpec, match="losses of other rows do not compare"):
        require_resumable(old, new, 0)
    require_resumable(old, new, None)
    require_resumable(old, parse_spec(body(evaluation={"max_sequences": 20})), 0)


@pytest.mark.parametrize(
    ("early", "steps", "patience", "refusal"),
    [
        (False, 1000, None, "has made all 1000 steps; to continue, resume with a higher schedule"),
        (False, 1001, None, None),
        (False, 1001, 2, None),
        (True, 2000, 2, "its evaluation.patience ran out at step 700"),
        (True, 1000, 3, None),
        (True, 1000, None, None),
        (True, 700, None, "has made all 700 steps"),
    ],
)
def test_a_run_that_succeeded_resumes_only_if_it_makes_a_further_step(
    early: bool, steps: int, patience: int | None, refusal: str | None
) -> None:
    old = parse_spec(body(evaluation={"patience": 2 if early else None}))
    new = parse_spec(body(schedule={"steps": steps}, evaluation={"patience": patience}))
    expected = nullcontext() if refusal is None else pytest.raises(Conflict, match=refusal)
    with expected:
        require_more_to_do("run", old, new, 700 if early else 1000, early=early)


def test_the_fields_a_resume_may_change_exist() -> None:
    rollout = {"fraction": 0.5, "prompt_tokens": 4}
    resolved = parse_spec(body(rollout=rollout)).model_dump()
    for dotted in RESUME_MAY_CHANGE:
        value: Any = resolved
        for part in dotted.split("."):
            value = value[part]


@pytest.mark.parametrize("text", ["name: 2001-99-99", "name: !!bool maybe", "seed: " + "9" * 5000])
def test_yaml_that_the_parser_chokes_on_is_an_invalid_spec(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InvalidSpec):
        load_spec(path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("seed", True, "expected an integer, got true"),
        ("schedule.steps", False, "expected an integer, got false"),
        ("objective.alpha", True, "expected a number, got true"),
        ("teacher.top_k", True, "expected an integer, got true"),
        ("optimizer.betas", [True, 0.9], "expected only numbers, got true or false among them"),
    ],
)
def test_true_is_not_a_number(field, value, said):
    *section, name = field.split(".")
    assert (field, said) in problems(**({section[0]: {name: value}} if section else {name: value}))
