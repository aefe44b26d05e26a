"""A sweep becomes one spec a combination, or is refused with the field that is at fault."""

from typing import Any

import pytest

from lectern_common.errors import InvalidSpec
from lectern_common.spec.sweep import MAX_RUNS, Sweep, parse_sweep, setting_of

BASE: dict[str, Any] = {
    "student": {"config": "tiny"},
    "data": {"kind": "synthetic", "seq_len": 16},
    "objective": {"alpha": 1},
    "schedule": {"steps": 20, "warmup_steps": 0},
}
TAUGHT = {**BASE, "teacher": {}, "objective": {"alpha": 0.3}, "student": {"init": "small"}}
RATE = "optimizer.learning_rate"


def body(base: dict[str, Any] = BASE, **fields: Any) -> dict[str, Any]:
    return {"name": "rates", "base": base, **fields}


def made(**fields: Any) -> Sweep:
    return parse_sweep(body(**fields))


def problems(data: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidSpec) as refused:
        parse_sweep(data)
    return refused.value.problems


def test_a_grid_is_a_product_in_the_order_given_with_the_last_setting_fastest() -> None:
    sweep = made(grid={RATE: [1e-3, 1e-4], "seed": [5, 0, 7]})
    found = [(spec.name, spec.optimizer.learning_rate, spec.seed) for spec in sweep.specs]
    assert found == [
        ("rates-01", 1e-3, 5),
        ("rates-02", 1e-3, 0),
        ("rates-03", 1e-3, 7),
        ("rates-04", 1e-4, 5),
        ("rates-05", 1e-4, 0),
        ("rates-06", 1e-4, 7),
    ]
    assert sweep.settings == (RATE, "seed")
    assert (sweep.metric, sweep.goal) == ("loss/val", "min")
    turned = made(grid={"seed": [5, 0, 7], RATE: [1e-3, 1e-4]})
    assert [spec.seed for spec in turned.specs] == [5, 5, 0, 0, 7, 7]


def test_a_list_makes_a_run_an_entry_over_the_base() -> None:
    entries = [{RATE: 1e-3}, {}, {"seed": 3, "batch.sequences_per_step": 4}]
    sweep = made(list=entries, metric="loss/ce", goal="max")
    assert [spec.optimizer.learning_rate for spec in sweep.specs] == [1e-3, 1e-4, 1e-4]
    assert [spec.batch.sequences_per_step for spec in sweep.specs] == [8, 8, 4]
    assert sweep.settings == (RATE, "seed", "batch.sequences_per_step")
    assert (sweep.metric, sweep.goal) == ("loss/ce", "max")


def test_a_hundred_runs_have_three_digits() -> None:
    names = [spec.name for spec in made(grid={"seed": list(range(100))}).specs]
    assert (names[0], names[-1]) == ("rates-001", "rates-100")


def test_a_section_that_may_be_null_is_set_as_a_whole_or_below() -> None:
    base = {**BASE, "student": {"init": "small"}}
    sweep = made(base=base, grid={"student.lora": [None, {"rank": 4}]})
    assert [spec.student.lora and spec.student.lora.rank for spec in sweep.specs] == [None, 4]
    below = made(base=base, grid={"student.lora.rank": [4, 8]})
    assert [spec.student.lora.rank for spec in below.specs if spec.student.lora] == [4, 8]
    both = {"objective.alpha": 1, "teacher": None}
    twin = made(base=TAUGHT, list=[{}, both])
    assert [spec.distils for spec in twin.specs] == [True, False]


def test_what_the_base_says_stays_and_its_name_is_not_used() -> None:
    base = {**BASE, "name": "Not A Name", "tags": ["a"], "priority": 3, "group": None}
    spec = made(base=base, grid={"seed": [1, 2]}).specs[1]
    assert (spec.name, spec.tags, spec.priority, spec.seed) == ("rates-02", ["a"], 3, 2)
    assert base["name"] == "Not A Name"


def test_the_hash_is_of_what_is_made() -> None:
    one = made(grid={RATE: [1e-3, 1e-4]})
    full = one.specs[0].model_dump(mode="json")
    assert made(base=full, list=[{RATE: 0.001}, {RATE: 0.0001}]).sha256() == one.sha256()
    assert made(grid={RATE: [1e-4, 1e-3]}).sha256() != one.sha256()
    assert made(grid={RATE: [1e-3, 1e-4]}, goal="max").sha256() != one.sha256()


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "a misspelt setting": ({"grid": {"optimizer.lr": [1]}}, "grid.optimizer.lr", "learning_rate"),
    "no section": ({"grid": {"learning_rate": [1]}}, "grid.learning_rate", f"did you mean {RATE}?"),
    "a misspelt section": (
        {"list": [{}, {"objectiv.alpha": 1}]},
        "list[1].objectiv.alpha",
        "did you mean objective.alpha?",
    ),
    "below a setting": ({"grid": {"seed.x": [1]}}, "grid.seed.x", "seed has none below it"),
    "a section": ({"grid": {"objective": [{}]}}, "grid.objective", "objective.alpha"),
    "the name": ({"grid": {"name": ["a"]}}, "grid.name", "the sweep names its runs"),
    "a label": ({"list": [{"notes": "a"}]}, "list[0].notes", "set it in base"),
    "the group": ({"grid": {"group": ["a"]}}, "grid.group", "the id of the sweep"),
    "twice": (
        {"grid": {"student.lora": [None], "student.lora.rank": [1]}},
        "grid.student.lora.rank",
        "student.lora is set as a whole",
    ),
    "no list": ({"grid": {"seed": 3}}, "grid.seed", "must be a list"),
    "no value": ({"grid": {"seed": []}}, "grid.seed", "at least one value"),
    "an empty grid": ({"grid": {}}, "grid", "must be a mapping"),
    "an empty list": ({"list": []}, "list", "must be a list"),
    "an entry that is none": ({"list": [{}, 3]}, "list[1]", "must be a mapping"),
    "both": ({"grid": {"seed": [1]}, "list": [{}]}, "grid", "exactly one of grid and list"),
    "neither": ({}, "grid", "exactly one of grid and list"),
    "an unknown field": (
        {"metrics": "a", "grid": {"seed": [1]}},
        "metrics",
        "did you mean metric?",
    ),
    "a metric that is none": ({"metric": "a b", "grid": {"seed": [1]}}, "metric", "loss/val"),
    "a number as metric": ({"metric": 5, "grid": {"seed": [1]}}, "metric", "loss/val"),
    "an unknown goal": ({"goal": "low", "grid": {"seed": [1]}}, "goal", "min or max"),
    "a group in base": (
        {"base": {**BASE, "group": "a"}, "grid": {"seed": [1]}},
        "base.group",
        "the id of the sweep",
    ),
    "no base": ({"base": None, "grid": {"seed": [1]}}, "base", "required"),
    "a bad name": ({"name": "No", "grid": {"seed": [1]}}, "name", "lower-case letters"),
    "a long name": ({"name": "x" * 60, "grid": {"seed": [1]}}, "name", "at most 59"),
    "a section of base that is none": (
        {"base": {**BASE, "optimizer": 3}, "grid": {RATE: [1, 2]}},
        "base.optimizer",
        "must be a mapping",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_sweep_that_is_wrong_names_its_field(name: str) -> None:
    fields, field, words = WRONG[name]
    found = dict(problems({**body(), **fields}))
    assert words in found[field], found


def test_a_value_that_is_wrong_is_named_with_the_combination() -> None:
    found = problems(body(grid={RATE: [1e-3, 1e-4, -1], "seed": [0, 1]}))
    assert found == [
        (
            f"grid.{RATE}[2]",
            f"expected more than 0, got -1 (2 of 6 runs, the first: {RATE} -1, seed 0)",
        )
    ]
    found = problems(body(list=[{}, {"seed": 1, "batch.sequences_per_step": 0}]))
    assert found[0][0] == "list[1].batch.sequences_per_step"
    assert "(run 2 of 2: seed 1, batch.sequences_per_step 0)" in found[0][1]


def test_a_rule_over_several_settings_is_named_with_the_combination() -> None:
    name, micro = "batch.sequences_per_step", "batch.micro_batch_sequences"
    [(field, why)] = problems(body(grid={name: [8, 6], micro: [4, 2]}))
    assert field == "grid"
    assert why.startswith("batch: micro_batch_sequences (4) must divide sequences_per_step (6)")
    assert f"run 3 of 4: {name} 6, {micro} 4" in why
    found = problems(body(base=TAUGHT, grid={"objective.alpha": [0.3, 1]}))
    assert [field for field, _ in found] == ["base.teacher", "grid.objective.alpha[1]"]
    assert all("teacher has no effect with objective.alpha 1" in why for _, why in found)
    found = problems(body(list=[{}, {"objective.alpha": 0.5}]))
    assert [field for field, _ in found] == ["base.teacher", "list[1].objective.alpha"]


def test_what_is_wrong_in_every_run_is_a_problem_of_the_base() -> None:
    base = {**BASE, "objective": {"alpha": 0.5}, "data": {"kind": "synthetic", "seq_len": 1}}
    found = problems(body(base=base, grid={RATE: [1, 2]}))
    assert found == [("base.data.seq_len", "expected at least 2, got 1")]
    base = {**BASE, "objective": {"alpha": 0.5}}
    found = problems(body(base=base, grid={RATE: [1, 2]}))
    assert [field for field, _ in found] == ["base.teacher", "base.objective.alpha"]
    assert all(why.startswith("teacher is required") for _, why in found)


@pytest.mark.parametrize("given", [3, [], {"seed": 1}])
def test_a_list_that_is_none_is_told_what_it_holds(given) -> None:
    whole = "must be a list of mappings of settings, such as optimizer.learning_rate, to values"
    assert problems(body(list=given)) == [("list", whole)]


@pytest.mark.parametrize(
    ("fields", "field", "same"),
    [
        ({"grid": {RATE: [1e-3, 1e-4, 0.001]}}, f"grid.{RATE}[2]", f"grid.{RATE}[0]"),
        ({"grid": {RATE: [1, 1.0], "seed": [0, 1]}}, f"grid.{RATE}[1]", f"grid.{RATE}[0]"),
        ({"grid": {"seed": [1, "1"]}}, "grid.seed[1]", "grid.seed[0]"),
        ({"list": [{"seed": 1}, {RATE: 1e-4, "seed": 1}]}, "list[1]", "list[0]"),
        (
            {"grid": {"schedule.warmup_steps": [0, 2, 0]}},
            "grid.schedule.warmup_steps[2]",
            "grid.schedule.warmup_steps[0]",
        ),
    ],
)
def test_the_same_run_twice_is_refused(fields: dict[str, Any], field: str, same: str) -> None:
    assert problems(body(**fields)) == [(field, f"makes the same run as {same}; leave one out")]


@pytest.mark.parametrize(
    "fields",
    [
        {"grid": {"seed": list(range(MAX_RUNS + 1))}},
        {"list": [{"seed": seed} for seed in range(MAX_RUNS + 1)]},
        {"grid": {f"{name}": list(range(2000)) for name in (RATE, "seed", "schedule.steps")}},
    ],
)
def test_too_many_runs_are_refused_before_any_is_made(fields: dict[str, Any]) -> None:
    [(field, why)] = problems(body(**fields))
    assert field == next(iter(fields))
    assert why.endswith("runs; at most 200")


def test_as_many_runs_as_allowed_are_made() -> None:
    assert len(made(grid={"seed": list(range(MAX_RUNS))}).specs) == MAX_RUNS


@pytest.mark.parametrize("data", [None, [], "a", 3])
def test_what_is_no_mapping_is_no_sweep(data: Any) -> None:
    [(field, why)] = problems(data)
    assert (field, "a sweep is a mapping" in why) == ("", True)


def test_a_setting_is_read_from_a_stored_spec() -> None:
    spec = made(grid={"seed": [1]}).specs[0].model_dump(mode="json")
    assert setting_of(spec, RATE) == 1e-4
    assert setting_of(spec, "student.lora.rank") is None
    assert setting_of({"optimizer": 3}, RATE) is None
