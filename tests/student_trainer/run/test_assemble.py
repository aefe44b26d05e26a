"""Every field of a run spec is applied, or the run is refused. Most runs are assembled only."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from lectern_common.errors import (
    CorruptData,
    Incompatible,
    InvalidSpec,
    LecternError,
    Misconfigured,
    NotFound,
    RepresentationNotOffered,
    SameWeights,
    TeacherUnavailable,
    TokenizerMismatch,
    Untrusted,
    WrongModel,
)
from lectern_common.spec.suites import CodeOptions, HarnessOptions
from lectern_common.tokens.shards import read_manifest
from lectern_common.tokens.tokenizer_map import read_tokenizer_map, tokenizer_sha256
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from student_trainer.evaluation.samples import Prompts
from student_trainer.run.assembled import Assembly
from tests.support.certificates import Authority
from tests.support.models import write_tiny_tokenizer
from tests.support.spec_fields import spec_fields
from tests.support.training.runs import VOCAB_SIZE, Home, assembled, events_of, lines_of
from tests.support.training.shards import write_shards
from tests.support.training.wire_teacher import Serving, WireTeacher


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    home.model("other-config", weights=False, intermediate_size=20)
    home.model("weights", seed=3)
    home.model("deep", layers=3)
    home.model("wide", weights=False, vocab_size=300)
    home.tokenized()
    tokens = np.arange(200) % 37  # no duplicate rows
    other = np.random.default_rng(5).integers(0, VOCAB_SIZE, 100)
    write_shards(home.path / "data" / "held-out", other)
    write_shards(home.path / "data" / "documents", tokens, documents=range(0, 200, 5))
    lengths = np.array([5, 15] * 10)
    starts = np.cumsum(lengths) - lengths
    write_shards(home.path / "data" / "chats", tokens, documents=starts, mask=np.ones(200))
    (home.path / "secrets").mkdir()
    (home.path / "secrets" / "token").write_text("secret\n")
    return home


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with Serving(WireTeacher()) as server:
        yield server


def remote(run: Assembly) -> Any:
    assert run.parts.teaching is not None
    return run.parts.teaching.provider


def prompts(run: Assembly) -> Prompts:
    assert run.parts.samples is not None
    return run.parts.samples._prompts


def groups(run: Assembly) -> list[dict[str, Any]]:
    return run.parts.optimizer.param_groups


def digest(run: Assembly) -> str:
    return str(run.parts.checkpoint_facts["initial_weights_sha256"])


def rates(run: Assembly) -> list[float]:
    return [round(run.settings.learning_rate(step), 6) for step in range(run.settings.steps)]


def first_rows(run: Assembly) -> list[list[int]]:
    rows: list[list[int]] = run.parts.batches.batch_at(0).inputs_BS.tolist()
    return rows


def validation_rows(run: Assembly) -> int:
    assert run.parts.validation is not None
    return sum(len(batch.inputs_BS) for batch in run.parts.validation())


def store(run: Assembly) -> Any:
    return run.parts.checkpoints


def adapters(**lora: Any) -> dict[str, Any]:
    return {"student": {"init": "weights", "config": None, "lora": lora}}


def adapted(run: Assembly) -> Any:
    return run.loaded.facts["lora"]


DISTILLING = {"alpha": 0.5}


def rolling(**rollout: Any) -> dict[str, Any]:
    rows = {"fraction": 0.5, "prompt_tokens": 3, "max_new_tokens": 8}
    return {"teacher": {}, "rollout": {**rows, **rollout}}


def writer(run: Assembly) -> Any:
    return run.parts.writer


SAMPLED: dict[str, Any] = {
    "student": {"config": "wide"},
    "data": {"path": "bytes"},
    "evaluation": {"prompts": ["def", "import"], "prompt_tokens": 3},
}
# dotted field -> (sections of the spec, how to read the value, the expected value)
APPLIED: dict[str, tuple[dict[str, Any], Callable[[Assembly], Any], Any]] = {
    "name": ({"name": "called-this"}, lambda run: run.spec.name, "called-this"),
    "seed": ({"seed": 5}, lambda run: run.settings.seed, 5),
    "teacher.address": (
        {"teacher": {}},
        lambda run: remote(run)._calls._replicas.address == run.spec.teacher.address,  # type: ignore[union-attr]
        True,
    ),
    "teacher.model": (
        {"teacher": {"model": "wire"}},
        lambda run: remote(run).model.model_id,
        "wire",
    ),
    "teacher.representation": (
        {"teacher": {"representation": "dense"}},
        lambda run: run.parts.teaching.representation.kind,  # type: ignore[union-attr]
        "dense",
    ),
    "teacher.top_k": (
        {"teacher": {"representation": "top_k", "top_k": 5}},
        lambda run: run.parts.teaching.representation.top_k,  # type: ignore[union-attr]
        5,
    ),
    "teacher.num_draws": (
        {"teacher": {"representation": "sampled", "num_draws": 7}},
        lambda run: run.parts.teaching.representation.num_draws,  # type: ignore[union-attr]
        7,
    ),
    "teacher.prefetch_steps": (
        {"teacher": {"prefetch_steps": 2}},
        lambda run: run.parts.teaching.prefetch_steps,  # type: ignore[union-attr]
        2,
    ),
    "teacher.deadline_seconds": (
        {"teacher": {"deadline_seconds": 7}},
        lambda run: remote(run)._calls._deadline_seconds,
        7.0,
    ),
    "teacher.outage_budget_seconds": (
        {"teacher": {"outage_budget_seconds": 8}},
        lambda run: remote(run)._calls._outage._budget_seconds,
        8.0,
    ),
    "teacher.token_file": (
        {"teacher": {"token_file": "token"}},
        lambda run: remote(run)._calls._replicas._secrets.token,
        "secret",
    ),
    "teacher.allow_same_weights": (
        {"teacher": {"allow_same_weights": True}},
        lambda run: run.parts.teaching.allow_same_weights,  # type: ignore[union-attr]
        True,
    ),
    "rollout.fraction": (
        rolling(fraction=0.25),
        lambda run: round(sum(len(writer(run).plan.slots(step)) for step in range(4000)) / 1000),
        4,
    ),
    "rollout.prompt_tokens": (rolling(), lambda run: len(writer(run).prompts.ids(0)), 3),
    "rollout.max_new_tokens": (
        rolling(max_new_tokens=9),
        lambda run: writer(run).sampling.max_new_tokens,
        9,
    ),
    "rollout.temperature": (
        rolling(temperature=0.5),
        lambda run: writer(run).sampling.temperature,
        0.5,
    ),
    "rollout.top_p": (rolling(top_p=0.5), lambda run: writer(run).sampling.top_p, 0.5),
    "rollout.top_k": (rolling(top_k=7), lambda run: writer(run).sampling.top_k, 7),
    "rollout.samples_per_prompt": (
        rolling(samples_per_prompt=4),
        lambda run: writer(run).plan.groups,
        1,
    ),
    "rollout.stale_steps": (rolling(stale_steps=1), lambda run: writer(run).stale_steps, 1),
    "rollout.keep": (rolling(keep=False), lambda run: run.parts.kept_rollouts, None),
    "student.config": (
        {"student": {"config": "other-config"}},
        lambda run: run.student.model.config.intermediate_size,
        20,
    ),
    "student.init": (
        {"student": {"init": "weights", "config": None}},
        lambda run: digest(run) == weights_sha256(safetensors_files(run.loaded.folder)),
        True,
    ),
    "student.dtype": (
        {"student": {"dtype": "bfloat16"}},
        lambda run: run.student.hidden_states(torch.tensor([[1, 2]])).dtype,
        torch.bfloat16,
    ),
    "student.keep_every_nth_layer": (
        {"student": {"init": "deep", "config": None, "keep_every_nth_layer": 2}},
        lambda run: run.loaded.facts["kept_layers"],
        [0, 2],
    ),
    "student.lora.rank": (adapters(rank=3), lambda run: adapted(run)["rank"], 3),
    "student.lora.alpha": (adapters(alpha=5), lambda run: adapted(run)["alpha"], 5.0),
    "student.lora.dropout": (adapters(dropout=0.5), lambda run: adapted(run)["dropout"], 0.5),
    "student.lora.targets": (
        adapters(targets=["q_proj"]),
        lambda run: adapted(run)["targets"],
        ["q_proj"],
    ),
    "data.kind": ({"data": {"kind": "synthetic", "path": None}}, lambda run: run.data.folder, None),
    "data.attention_across_documents": (
        {"data": {"path": "documents", "attention_across_documents": False}},
        lambda run: run.parts.batches.batch_at(0).position_ids_BS.max(),  # type: ignore[union-attr]
        4,
    ),
    "data.long_chats": (
        {"data": {"path": "chats", "long_chats": "drop"}},
        lambda run: run.data.described["chats_dropped"],
        10,
    ),
    "data.path": (
        {"data": {"path": "held-out"}},
        lambda run: run.data.folder.name,  # type: ignore[union-attr]
        "held-out",
    ),
    "data.seq_len": ({"data": {"seq_len": 13}}, lambda run: len(first_rows(run)[0]), 13),
    "data.validation_fraction": (
        {"data": {"validation_fraction": 0.5}},
        lambda run: (len(run.data.training), validation_rows(run)),
        (125, 123),  # one of the 124 is also a training row
    ),
    "data.validation_path": (
        {"data": {"validation_fraction": None, "validation_path": "held-out"}},
        lambda run: (len(run.data.training), validation_rows(run)),
        (249, 12),
    ),
    "objective.alpha": ({"objective": {"alpha": 1}}, lambda run: run.settings.objective.alpha, 1.0),
    "objective.temperature": (
        {"objective": {"temperature": 3}},
        lambda run: run.settings.objective.temperature,
        3.0,
    ),
    "objective.divergence": (
        {"objective": {"divergence": "jsd"}},
        lambda run: (run.settings.objective.divergence, run.settings.objective.beta),
        ("jsd", 0.5),
    ),
    "objective.beta": (
        {"objective": {"divergence": "jsd", "beta": 0.25}},
        lambda run: run.settings.objective.beta,
        0.25,
    ),
    "objective.chunk_tokens": (
        {"objective": {"chunk_tokens": 11}},
        lambda run: run.settings.objective.chunk_tokens,
        11,
    ),
    "optimizer.learning_rate": (
        {"optimizer": {"learning_rate": 0.5}, "schedule": {"decay": "constant"}},
        lambda run: max(rates(run)),
        0.5,
    ),
    "optimizer.betas": (
        {"optimizer": {"betas": [0.5, 0.75]}},
        lambda run: [tuple(group["betas"]) for group in groups(run)],
        [(0.5, 0.75)] * 2,
    ),
    "optimizer.weight_decay": (
        {"optimizer": {"weight_decay": 0.7}},
        lambda run: [group["weight_decay"] for group in groups(run)],
        [0.7, 0.0],
    ),
    "optimizer.max_grad_norm": (
        {"optimizer": {"max_grad_norm": 0.25}},
        lambda run: run.settings.max_grad_norm,
        0.25,
    ),
    "schedule.steps": ({"schedule": {"steps": 9}}, lambda run: run.settings.steps, 9),
    "schedule.warmup_steps": (
        {"schedule": {"warmup_steps": 4, "decay": "constant"}},
        rates,
        [0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01],
    ),
    "schedule.decay": (
        {"schedule": {"decay": "linear", "warmup_steps": 1, "final_fraction": 0.0}},
        rates,
        [0.01, 0.008, 0.006, 0.004, 0.002, 0.0],
    ),
    "schedule.final_fraction": (
        {"schedule": {"final_fraction": 0.5}},
        lambda run: rates(run)[-1],
        0.005,
    ),
    "batch.sequences_per_step": (
        {"batch": {"sequences_per_step": 6}},
        lambda run: len(first_rows(run)),
        6,
    ),
    "batch.micro_batch_sequences": (
        {"batch": {"micro_batch_sequences": 2}},
        lambda run: run.settings.micro_batch_sequences,
        2,
    ),
    "evaluation.every_steps": (
        {"evaluation": {"every_steps": 5}},
        lambda run: run.settings.evaluate_every,
        5,
    ),
    "evaluation.patience": (
        {"evaluation": {"patience": 7}},
        lambda run: run.settings.patience,
        7,
    ),
    "evaluation.prompts": (SAMPLED, lambda run: prompts(run).texts, ["def", "import"]),
    "evaluation.prompt_tokens": (SAMPLED, lambda run: prompts(run).num_tokens, 3),
    "evaluation.max_sequences": ({"evaluation": {"max_sequences": 3}}, validation_rows, 3),
    "checkpoint.every_steps": (
        {"checkpoint": {"every_steps": 4}},
        lambda run: run.settings.checkpoint_every,
        4,
    ),
    "checkpoint.keep_last": (
        {"checkpoint": {"keep_last": 5}},
        lambda run: store(run)._keep_last,
        5,
    ),
    "checkpoint.keep_best": (
        {"checkpoint": {"keep_best": 3}},
        lambda run: store(run)._keep_best,
        3,
    ),
    "device.kind": ({"device": {"kind": "cpu"}}, lambda run: run.parts.device.type, "cpu"),
    "device.activation_checkpointing": (
        {"device": {"activation_checkpointing": True}},
        lambda run: run.student.model.is_activation_checkpointing,
        True,
    ),
    "device.compile": (
        {"device": {"compile": True}},
        lambda run: (
            run.student.model.get_decoder()._compiled_call_impl is not None,
            run.settings.objective.compiled,
        ),
        (True, True),
    ),
}
ON_POLICY = "tests/student_trainer/generating/rollouts/test_on_policy_runs.py"
# Tested elsewhere: fields that are refused, applied by __main__ (test_main.py) or by the control
# plane.
SHOWN_ELSEWHERE = {
    "rollout.prompts": ON_POLICY,
    "rollout.engine": "tests/lectern_common/spec/test_rollout.py",
    "teachers": "test_mixed_runs.py",
    "data.sources": "test_mixed_runs.py",
    "data.sources.path": "test_mixed_runs.py",
    "data.sources.weight": "tests/student_trainer/data/test_mixed.py",
    "data.sources.teacher": "test_mixed_runs.py",
    "data.sources.name": "tests/lectern_common/spec/test_sources.py",
    "teacher.record": "tests/student_trainer/record/test_recorded_runs.py",
    "teacher.record_to": "tests/student_trainer/record/test_kept.py",
    "priority": "tests/control_plane/runs/test_line.py",
    "group": "tests/control_plane/runs/test_line.py",
    "tags": "tests/control_plane/runs/test_line.py",
    "notes": "tests/control_plane/runs/test_line.py",
    "teacher.vocabulary": "test_the_option_same_accepts_no_difference",
    "teacher.tls_ca_file": "test_a_run_learns_over_mutual_tls_from_two_replicas",
    "teacher.tls_cert_file": "test_a_run_learns_over_mutual_tls_from_two_replicas",
    "teacher.tls_key_file": "test_a_run_learns_over_mutual_tls_from_two_replicas",
    "student.revision": "test_a_revision_of_a_folder_is_refused",
    "data.max_bad_rows_fraction": "test_bad_rows_are_left_out_up_to_the_cap",
    "device.count": "tests/integration/test_ranks.py",
    "device.max_restarts": "tests/integration/test_ranks.py",
    "device.threads": "test_main.py",
    "report_to": "test_main.py",
    "evaluation.suites": "tests/student_trainer/evaluating/test_during.py",
    "evaluation.metric": "tests/student_trainer/evaluating/test_during.py",
    "evaluation.metric_goal": "tests/student_trainer/evaluating/test_during.py",
    **{
        f"evaluation.code.{name}": "tests/student_trainer/evaluating/code/test_suite.py"
        for name in CodeOptions.model_fields
    },
    **{
        f"evaluation.lm_eval.{name}": "tests/student_trainer/evaluating/test_harness.py"
        for name in HarnessOptions.model_fields
    },
}


def test_every_field_is_tested() -> None:
    assert set(spec_fields()) == APPLIED.keys() | SHOWN_ELSEWHERE.keys()


# Torch's own, on importing its compiler.
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.parametrize("field", sorted(APPLIED))
def test_a_field_is_applied(home: Home, serving: Serving, field: str) -> None:
    sections, look, expected = APPLIED[field]
    sections = {
        key: dict(value) if isinstance(value, dict) else value for key, value in sections.items()
    }
    name = sections.pop("name", field.replace(".", "-").replace("_", "-"))
    if "teacher" in sections or (field.startswith("objective.") and field != "objective.alpha"):
        sections["teacher"] = {"address": serving.address, **sections.get("teacher", {})}
        sections["objective"] = {**DISTILLING, **sections.get("objective", {})}
    with assembled(home, home.run(name, **sections)) as run:
        assert look(run) == expected


def test_the_seed_changes_initial_weights_and_row_order(home: Home) -> None:
    seen = []
    for seed in (0, 0, 1):
        with assembled(home, home.run(seed=seed)) as run:
            seen.append((digest(run), first_rows(run)))
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[2][0]
    assert seen[0][1] != seen[2][1]


def test_a_run_learns_over_mutual_tls_from_two_replicas(home: Home) -> None:
    authority = Authority(home.roots.secrets)
    certificate, key = authority.sign("server", "127.0.0.1")
    mine, my_key = authority.sign("client")
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], authority.path.read_bytes(), True
    )
    files = {"tls_ca_file": authority.path.name, "token_file": "token"}
    own = {"tls_cert_file": mine.name, "tls_key_file": my_key.name}
    with Serving(WireTeacher(), credentials) as one, Serving(WireTeacher(), credentials) as two:
        teacher = {"address": f"{one.address},{two.address}", **files}
        steps: dict[str, Any] = {
            "schedule": {"steps": 4, "warmup_steps": 0},
            "objective": DISTILLING,
        }
        with assembled(home, home.run(teacher={**teacher, **own}, **steps), steps=4) as run:
            assert run.progress.step == 4
        # Asked in turn, so that both have served equally many.
        asked = [len(one.teacher.requests), len(two.teacher.requests)]
        assert asked[0] == asked[1] >= 2
        for serving in (one, two):
            tokens = {entry["authorization"] for entry in serving.teacher.metadata}
            assert tokens == {"Bearer secret"}
        # Each of the files is needed.
        unanswered = {**teacher, "outage_budget_seconds": 0}
        with (
            pytest.raises(TeacherUnavailable, match=r"set teacher\.tls_cert_file"),
            assembled(home, home.run(teacher=unanswered, **steps)),
        ):
            pass
        strangers = Authority(home.roots.secrets / "strangers")
        other = f"strangers/{strangers.path.name}"
        with (
            pytest.raises(Untrusted, match=r"teacher\.tls_ca_file"),
            assembled(home, home.run(teacher={**teacher, **own, "tls_ca_file": other}, **steps)),
        ):
            pass


def test_the_requests_carry_the_settings_of_the_spec(home: Home) -> None:
    with Serving(WireTeacher()) as serving:
        folder = home.run(
            teacher={
                "address": serving.address,
                "representation": "top_k",
                "top_k": 6,
                "token_file": "token",
            },
            objective={"alpha": 0.5, "temperature": 3.5},
            schedule={"steps": 2, "warmup_steps": 0},
            batch={"sequences_per_step": 4, "micro_batch_sequences": 2},
        )
        with assembled(home, folder, steps=2):
            pass
        requests, metadata = serving.teacher.asked_in_training(), serving.teacher.metadata
    assert len(requests) == 4
    for request in requests:
        assert request.run_id == folder.run_id
        assert list(request.sequence_lengths) == [8, 8]
        assert request.representation.top_k == 6
        assert request.temperature == 3.5
        assert request.vocab_size == VOCAB_SIZE
    assert {entry["authorization"] for entry in metadata} == {"Bearer secret"}
    [assembled_as] = events_of(folder, "assembled")
    evaluated = 8 * assembled_as["validation_rows"]
    assert sum(line["wire/positions"] for line in lines_of(folder)[1:]) == 64 + evaluated


def test_draws_use_a_seed_of_run_and_step(home: Home) -> None:
    """Equal for the micro-batches of a step, different in each step and for each run seed."""
    asked = {}
    for name, seed, prefetch_steps in (("a", 3, 0), ("b", 3, 4), ("c", 4, 4)):
        with Serving(WireTeacher()) as serving:
            folder = home.run(
                seed=seed,
                teacher={
                    "address": serving.address,
                    "representation": "sampled",
                    "num_draws": 9,
                    "prefetch_steps": prefetch_steps,
                },
                objective={"alpha": 0.5, "temperature": 3.5},
                schedule={"steps": 5, "warmup_steps": 0},
                batch={"sequences_per_step": 4, "micro_batch_sequences": 2},
            )
            with assembled(home, folder, steps=5):
                pass
            requests = serving.teacher.asked_in_training()
        assert {request.representation.num_draws for request in requests} == {9}
        assert {request.temperature for request in requests} == {3.5}
        asked[name] = sorted((r.token_ids, r.representation.seed) for r in requests)
        seeds = [request.representation.seed for request in requests]
        assert len(seeds) == 10
        assert sorted(seeds.count(seed) for seed in set(seeds)) == [2] * 5
    assert asked["a"] == asked["b"]
    assert not {seed for _, seed in asked["a"]} & {seed for _, seed in asked["c"]}


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"representation": "hidden"}, "exact"),
        ({"representation": "top_k", "top_k": 5}, "lower bound: over the teacher's top 5"),
        ({"representation": "sampled"}, "unbiased estimate from 50 draws a position"),
    ],
)
def test_the_event_says_what_the_logged_divergence_is(
    home: Home, serving: Serving, teacher: dict[str, Any], words: str
) -> None:
    folder = home.run(teacher={"address": serving.address, **teacher}, objective=DISTILLING)
    with assembled(home, folder):
        (event,) = events_of(folder, "assembled")
    assert event["kd_is"].startswith(words)


def test_the_event_describes_the_assembled_run(home: Home, serving: Serving) -> None:
    folder = home.run(teacher={"address": serving.address}, objective=DISTILLING)
    with assembled(home, folder) as run:
        (event,) = events_of(folder, "assembled")
        assert event["initial_weights_sha256"] == digest(run)
        assert event["teacher"] == "wire"
        assert event["training_rows"] == len(run.data.training)


# ---- refusals --------------------------------------------------------------------------------


def refused(home: Home, error: type[LecternError], match: str, **sections: Any) -> None:
    with pytest.raises(error, match=match), assembled(home, home.run(**sections)):
        pass


def test_a_revision_of_a_folder_is_refused(home: Home) -> None:
    student = {"init": "weights", "config": None, "revision": "main"}
    refused(home, Misconfigured, "has no revision", student=student)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_if_there_is_none(home: Home) -> None:
    refused(home, Misconfigured, "torch sees no CUDA device", device={"kind": "cuda"})


def test_rows_longer_than_the_students_positions_are_refused(home: Home) -> None:
    refused(home, Incompatible, "exceeds the 128 positions", data={"seq_len": 129})


def test_missing_things_are_named(home: Home) -> None:
    refused(home, NotFound, "no dataset", data={"path": "nothing"})
    refused(home, NotFound, "no model folder .nothing.", student={"config": "nothing"})


def test_a_step_larger_than_the_data_is_refused(home: Home) -> None:
    refused(home, InvalidSpec, "a step needs 500 rows", batch={"sequences_per_step": 500})


def test_bad_rows_are_left_out_up_to_the_cap(home: Home) -> None:
    tokens = np.random.default_rng(6).integers(0, VOCAB_SIZE, 400)
    tokens[[100, 300]] = VOCAB_SIZE + 3
    write_shards(home.path / "data" / "dirty", tokens)
    refused(home, Incompatible, "2 of 49 rows", data={"path": "dirty"})
    folder = home.run(data={"path": "dirty", "max_bad_rows_fraction": 0.1})
    with assembled(home, folder) as run:
        assert len(run.data.training) + len(run.data.validation) == 47


def test_a_validation_set_with_another_tokenizer_is_refused(home: Home) -> None:
    write_shards(home.path / "data" / "foreign", np.arange(90) % 9, tokenizer_sha256="1" * 64)
    refused(
        home,
        Incompatible,
        "prepared with a different tokenizer than data.path",
        data={"validation_fraction": None, "validation_path": "foreign"},
    )


def test_data_with_another_tokenizer_than_the_students_is_refused(home: Home) -> None:
    folder = home.tokenized("merges", 300)
    digest = read_manifest(folder).tokenizer_sha256
    # Merges too, of which the other tokenizer has fewer.
    tokens = np.random.default_rng(3).integers(0, 300, 900)
    write_shards(folder, tokens, vocab_size=300, tokenizer_sha256=digest)
    home.tokenized("bytes", 300)
    home.model("tokenized", vocab_size=300, tokenizer=True)
    write_tiny_tokenizer(home.model("tokenized-otherwise", vocab_size=300), 290)
    for student, data in (("tokenized", "merges"), ("tokenized-otherwise", "bytes")):
        with assembled(home, home.run(student={"config": student}, data={"path": data})):
            pass
    refused(
        home,
        TokenizerMismatch,
        r"data and student tokenizers differ: id 29\d: .*the data uses 29\d",
        student={"config": "tokenized-otherwise"},
        data={"path": "merges"},
    )


def test_a_tokenizer_that_is_not_the_shards_own_is_refused(home: Home) -> None:
    folder = home.tokenized("tampered", 300)
    home.tokenized("tampered-source", 280)
    other = home.path / "data" / "tampered-source" / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(other.read_bytes())
    home.model("wide", vocab_size=300)
    refused(
        home,
        CorruptData,
        "is not the tokenizer that the shards",
        student={"config": "wide"},
        data={"path": "tampered"},
    )


def test_a_teacher_with_the_students_weights_is_refused_unless_allowed(home: Home) -> None:
    """TEACHER-DIVERGENCE: by the hash of the weights."""
    digest = weights_sha256(safetensors_files(home.path / "models" / "weights"))
    with Serving(WireTeacher(weights_sha256=digest)) as serving:
        sections: dict[str, Any] = {
            "student": {"init": "weights", "config": None},
            "objective": DISTILLING,
        }
        teacher = {"address": serving.address}
        refused(home, SameWeights, "teacher's own weights", teacher=teacher, **sections)
        allowed = home.run(teacher={**teacher, "allow_same_weights": True}, **sections)
        with assembled(home, allowed):
            pass


def test_a_teacher_with_other_tokens_is_refused_naming_the_first(home: Home) -> None:
    source = home.tokenized("ours", 300)
    tokens = read_tokenizer_map(source / "tokenizer.json")
    home.model("ours", vocab_size=300, tokenizer=True)
    theirs = {
        ("changed" if token_id == 7 else token): token_id for token, token_id in tokens.items()
    }
    for map_of_teacher, fits in ((tokens, True), (theirs, False)):
        teacher = WireTeacher(
            vocab_size=300, tokens=map_of_teacher, tokenizer_sha256=tokenizer_sha256(map_of_teacher)
        )
        teacher.model.num_tokens = len(tokens)
        with Serving(teacher) as serving:
            sections: dict[str, Any] = {
                "student": {"config": "ours"},
                "data": {"path": "ours"},
                "objective": DISTILLING,
                "teacher": {"address": serving.address},
            }
            if fits:
                with assembled(home, home.run(**sections)):
                    pass
            else:
                refused(home, TokenizerMismatch, r'id 7: teacher "changed"', **sections)


def test_a_representation_that_the_teacher_does_not_offer_is_refused(home: Home) -> None:
    teacher = WireTeacher()
    del teacher.model.representations[1]
    with Serving(teacher) as serving:
        base = {"address": serving.address}
        refused(
            home,
            RepresentationNotOffered,
            "does not offer hidden",
            teacher=base,
            objective=DISTILLING,
        )
        refused(
            home,
            WrongModel,
            "teacher.model is another",
            teacher={**base, "model": "another"},
            objective=DISTILLING,
        )
        refused(
            home,
            Incompatible,
            "exceeds",
            teacher={**base, "representation": "top_k", "top_k": 41},
            objective=DISTILLING,
        )
