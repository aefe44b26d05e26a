"""A run that cannot work is refused before it starts, with a message that says why."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from lectern_common.checks.check import Outcome
from lectern_common.checks.needs.estimate import RowCounts
from lectern_common.checks.preflight import UNREAD, examine, require_startable
from lectern_common.errors import (
    CorruptData,
    Incompatible,
    InvalidSpec,
    LecternError,
    SameWeights,
    TeacherUnavailable,
    TokenizerMismatch,
    Unauthenticated,
    WrongModel,
)
from lectern_common.roots import Roots
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.secrets import read_token
from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from protos import teacher_pb2, teacher_pb2_grpc

NOBODY = "127.0.0.1:1"


@pytest.fixture
def roots(tmp_path) -> Roots:
    return Roots.of_home(tmp_path)


def write_tokenizer(path: Path, tokens: list[str]) -> dict[str, int]:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    vocabulary = {token: number for number, token in enumerate(tokens)}
    path.parent.mkdir(parents=True, exist_ok=True)
    Tokenizer(WordLevel(vocabulary, unk_token=tokens[0])).save(str(path))
    return vocabulary


def write_dataset(folder: Path, tokens: list[str], total: int = 100) -> None:
    vocabulary = write_tokenizer(folder / "tokenizer.json", tokens)
    (np.arange(total, dtype="<u4") % len(tokens)).tofile(folder / "shard-00000.bin")
    manifest = {
        "schema": "pretokenize-bin-v1",
        "tokenizer_sha256": tokenizer_sha256(vocabulary),
        "corpus_sha256": "0" * 64,
        "shard_count": 1,
        "total_tokens": total,
        "vocab_size": len(tokens),
        "eos_policy": "none",
        "eos_token_id": None,
        "seq_length_hint": None,
        "producer_version": "test",
        "producer_sha256": "",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write_student(folder: Path, tokens: list[str], fill: float = 1.0, **config: Any) -> None:
    """Writes a model folder in plain safetensors format: length, header, bytes."""
    write_tokenizer(folder / "tokenizer.json", tokens)
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(tokens), **config}))
    data = np.full(4, fill, "<f4").tobytes()
    tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    header = json.dumps({"model.layers.0.mlp.up_proj.weight": tensor}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)


def spec(**sections: Any) -> RunSpec:
    body = {
        "name": "run",
        "teacher": {"address": NOBODY},
        "student": {"init": "student"},
        "data": {"path": "text", "seq_len": 8},
        **sections,
    }
    return parse_spec({key: value for key, value in body.items() if value is not None})


@contextmanager
def teacher_serving(
    tokens: list[str], weights: str = "t" * 64, token: str | None = None
) -> Iterator[str]:
    """Serves GetModel and GetTokenizerMap; yields host:port."""
    vocabulary = {name: number for number, name in enumerate(tokens)}

    class Servicer(teacher_pb2_grpc.TeacherServicer):
        def GetModel(self, request, context):
            sent = dict(context.invocation_metadata()).get("authorization")
            if token is not None and sent != f"Bearer {token}":
                context.set_trailing_metadata((("lectern-reason", "unauthenticated"),))
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
            return teacher_pb2.Model(
                model_id="big",
                fingerprint="".join(tokens),
                weights_sha256=weights,
                logit_width=len(tokens),
                num_tokens=len(tokens),
                tokenizer_sha256=tokenizer_sha256(vocabulary),
                hidden_size=16,
                hidden_dtype=teacher_pb2.DTYPE_FLOAT32,
                representations=[
                    teacher_pb2.RepresentationOffer(
                        kind=teacher_pb2.REPRESENTATION_HIDDEN, offered=True
                    )
                ],
                limits=teacher_pb2.Limits(
                    max_sequences=64,
                    max_tokens=4096,
                    max_sequence_tokens=128,
                    max_reply_bytes=1 << 20,
                ),
            )

        def GetTokenizerMap(self, request, context):
            yield teacher_pb2.TokenizerMapReply(
                tokens=[name.encode() for name in tokens], ids=range(len(tokens))
            )

    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    teacher_pb2_grpc.add_TeacherServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def first_error(run: RunSpec, roots: Roots) -> LecternError:
    with pytest.raises(LecternError) as caught:
        require_startable(run, roots, timeout_seconds=2.0)
    return caught.value


def fields(error: LecternError) -> list[str]:
    assert isinstance(error, InvalidSpec)
    return [field for field, _ in error.problems]


@pytest.fixture
def ready(roots: Roots) -> Roots:
    """Roots with a dataset and a student that share a tokenizer."""
    write_dataset(roots.data / "text", ["a", "b", "c"])
    write_student(roots.models / "student", ["a", "b", "c"])
    return roots


def test_a_run_that_fits_passes_every_check(ready):
    with teacher_serving(["a", "b", "c"]) as address:
        checks, _ = examine(spec(teacher={"address": address}), ready)

    assert {check.subject: check.outcome for check in checks} == {
        "data": Outcome.PASS,
        "student": Outcome.PASS,
        "tokenizer": Outcome.PASS,
        "teacher": Outcome.PASS,
    }
    assert checks[0].message == "text: 100 tokens in 1 shard, 12 rows of 8"


def test_data_that_begins_otherwise_than_the_teacher_is_warned_of(ready):
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    path = ready.data / "text" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = TemplateProcessing(single="b $A", special_tokens=[("b", 1)])
    tokenizer.save(str(path))
    with teacher_serving(["a", "b", "c"]) as address:
        run = spec(teacher={"address": address})
        checks, _ = examine(run, ready)
        require_startable(run, ready)  # a warning does not keep it from starting
    (warning,) = (check for check in checks if check.outcome is Outcome.WARN)
    assert warning.subject == "beginnings"
    assert 'puts "b" (id 1) before each text, but a document in the data' in warning.message
    assert "--bos-policy document" in warning.advice


def test_a_students_vocabulary_that_only_the_trainer_reads_is_said_to_be_unchecked(ready):
    (ready.models / "student" / "tokenizer.json").rename(ready.models / "student/tokenizer.model")
    with teacher_serving(["a", "b", "c"]) as address:
        checks, _ = examine(spec(teacher={"address": address}), ready)
    (skipped,) = (check for check in checks if check.outcome is Outcome.SKIP)
    assert skipped.subject == "tokenizer"
    assert "converts the student's tokenizer.model" in skipped.message


def test_every_failing_check_is_listed_not_only_the_first(roots):
    checks, _ = examine(spec(), roots, timeout_seconds=2.0)

    assert [check.subject for check in checks if check.outcome is Outcome.FAIL] == [
        "data",
        "student",
        "teacher",
    ]


def test_missing_folders_are_refused_by_field(ready):
    assert fields(first_error(spec(data={"path": "nothing"}), ready)) == ["data.path"]
    missing = spec(data={"path": "text", "seq_len": 8, "validation_path": "nothing"})
    assert fields(first_error(missing, ready)) == ["data.validation_path"]
    assert fields(first_error(spec(student={"init": "nothing"}), ready)) == ["student.init"]
    assert fields(first_error(spec(student={"config": "nothing"}), ready)) == ["student.config"]


def test_a_student_without_safetensors_weights_is_refused(ready):
    folder = ready.models / "student"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    error = first_error(spec(), ready)

    assert fields(error) == ["student.init"]
    assert "pickle" in str(error)


def test_a_revision_of_a_folder_is_refused_as_the_trainer_would(ready):
    error = first_error(spec(student={"init": "student", "revision": "main"}), ready)
    assert fields(error) == ["student.revision"]


def test_a_hub_id_is_left_to_the_trainer(ready):
    checks, _ = examine(spec(student={"init": "org/model"}), ready, timeout_seconds=1.0)

    assert [check.outcome for check in checks if check.subject == "student"] == [Outcome.SKIP]


def test_data_shorter_than_a_row_is_refused(ready):
    assert fields(first_error(spec(data={"path": "text", "seq_len": 100}), ready)) == [
        "data.seq_len"
    ]


@pytest.mark.parametrize("field", ["path", "validation_path"])
def test_a_prompt_set_is_refused_as_data_by_field(ready, field):
    write_dataset(ready.data / "prompts", ["a", "b"])
    path = ready.data / "prompts/manifest.json"
    more = {"content": "prompts", "document_count": 1, "documents_sha256": "0" * 64}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))

    data = {"path": "text", "seq_len": 8, field: "prompts"}
    error = first_error(spec(data=data), ready)

    assert fields(error) == [f"data.{field}"]
    assert "is a prompt set" in str(error) and "rollout.prompts" in str(error)


def test_a_truncated_shard_is_refused(ready):
    (ready.data / "text/shard-00000.bin").write_bytes(b"1234")

    assert isinstance(first_error(spec(), ready), CorruptData)


def test_data_of_another_tokenizer_than_the_students_is_refused_by_token(ready):
    write_student(ready.models / "student", ["a", "b", "x"])

    error = first_error(spec(teacher=None, objective={"alpha": 1}), ready)

    assert isinstance(error, TokenizerMismatch)
    assert 'id 2: data "c", student "x"' in str(error)


def test_a_dataset_whose_tokenizer_was_exchanged_is_refused(ready):
    write_tokenizer(ready.data / "text/tokenizer.json", ["a", "b", "z"])
    write_student(ready.models / "student", ["a", "b", "z"])

    assert isinstance(first_error(spec(), ready), CorruptData)


def test_a_teacher_that_is_down_is_named(ready):
    error = first_error(spec(), ready)

    assert isinstance(error, TeacherUnavailable)
    assert NOBODY in str(error)


def test_every_replica_is_checked_and_one_that_is_down_is_named(ready):
    def teacher_check(address):
        checks, _ = examine(spec(teacher={"address": address}), ready)
        return next(check for check in checks if check.subject == "teacher")

    with teacher_serving(["a", "b", "c"]) as one, teacher_serving(["a", "b", "c"]) as two:
        both, half = teacher_check(f"{one},{two}"), teacher_check(f"{one},{NOBODY}")
    assert (both.outcome, half.outcome) == (Outcome.PASS, Outcome.PASS)
    assert f"at {one}, {two}: " in both.message and "skipped" not in both.message
    assert f"at {one}: " in half.message
    assert f"skipped for now: no teacher at {NOBODY}" in half.message
    with teacher_serving(["a", "b", "c"]) as one, teacher_serving(["a", "B", "c"]) as two:
        differing = teacher_check(f"{one},{two}")
    assert isinstance(differing.error, WrongModel)
    assert one in differing.message and two in differing.message


def test_a_teacher_with_another_tokenizer_is_refused(ready):
    with teacher_serving(["a", "B", "c"]) as address:
        error = first_error(spec(teacher={"address": address}), ready)

    assert isinstance(error, TokenizerMismatch)
    assert "id 1" in str(error)


def test_the_teachers_own_weights_are_refused_as_student(ready):
    """TEACHER-DIVERGENCE"""
    own = weights_sha256(safetensors_files(ready.models / "student"))
    with teacher_serving(["a", "b", "c"], weights=own) as address:
        error = first_error(spec(teacher={"address": address}), ready)
        assert isinstance(error, SameWeights)
        require_startable(spec(teacher={"address": address, "allow_same_weights": True}), ready)


def test_the_token_file_is_sent_and_its_content_is_in_no_message(ready):
    ready.secrets.mkdir()
    (ready.secrets / "right").write_text("s3cret\n")
    (ready.secrets / "wrong").write_text("other-s3cret\n")
    with teacher_serving(["a", "b", "c"], token="s3cret") as address:
        for name, refused in (("right", None), ("wrong", Unauthenticated), (None, Unauthenticated)):
            run = spec(teacher={"address": address, "token_file": name})
            if refused is None:
                require_startable(run, ready)
            else:
                error = first_error(run, ready)
                assert isinstance(error, refused)
                assert "s3cret" not in str(error)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"x" * 5000, b"\xff\xfe"])
def test_a_token_file_that_holds_no_token_is_refused(roots, content):
    roots.secrets.mkdir(parents=True)
    if content is not None:
        (roots.secrets / "token").write_bytes(content)

    with pytest.raises(InvalidSpec) as caught:
        read_token(roots, "token")
    assert caught.value.field == "teacher.token_file"


def test_a_link_that_leads_out_of_its_root_is_refused(ready, tmp_path):
    outside = tmp_path / "outside"
    write_dataset(outside, ["a", "b", "c"])
    (ready.data / "linked").symlink_to(outside, target_is_directory=True)

    error = first_error(spec(data={"path": "linked", "seq_len": 8}), ready)

    assert "leads outside its root" in str(error)


# ---- rows, positions, layers, packages -------------------------------------------------------


def test_data_smaller_than_a_step_is_refused(ready):
    """12 rows, one of them held out."""
    assert fields(first_error(spec(batch={"sequences_per_step": 12}), ready)) == [
        "batch.sequences_per_step"
    ]
    with teacher_serving(["a", "b", "c"]) as address:
        fits = spec(batch={"sequences_per_step": 11}, teacher={"address": address})
        require_startable(fits, ready)


def test_data_too_small_to_hold_rows_out_is_refused(ready):
    small = {"path": "text", "seq_len": 99}
    assert fields(first_error(spec(data=small), ready)) == ["data.validation_fraction"]


def test_validation_data_of_another_tokenizer_is_refused(ready):
    write_dataset(ready.data / "foreign", ["a", "x", "c"])
    error = first_error(
        spec(data={"path": "text", "seq_len": 8, "validation_path": "foreign"}), ready
    )
    assert isinstance(error, Incompatible)
    assert "data.validation_path foreign was prepared with a different tokenizer" in str(error)


def test_documents_are_kept_apart_only_if_their_starts_are_known(ready):
    apart = spec(
        data={"path": "text", "seq_len": 8, "attention_across_documents": False},
        teacher=None,
        objective={"alpha": 1},
    )
    assert fields(first_error(apart, ready)) == ["data.attention_across_documents"]

    path = ready.data / "text/manifest.json"
    known = {"document_count": 1, "documents_sha256": "1" * 64}
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **known}))
    require_startable(apart, ready)


@pytest.mark.parametrize(
    "config",
    [
        {"max_position_embeddings": 7},
        {"n_positions": 7},
        {"max_seq_len": 7},
        {"max_sequence_length": 7},
        {"max_position_embeddings": -1, "n_ctx": 7},
        {"language_config": {"seq_length": 7}},
        {"text_config": {"max_position_embeddings": 7}},
    ],
)
def test_rows_longer_than_the_students_positions_are_refused(ready, config):
    write_student(ready.models / "student", ["a", "b", "c"], **config)
    error = first_error(spec(), ready)
    assert isinstance(error, Incompatible)
    assert "data.seq_len 8 exceeds the 7 positions of the student" in str(error)
    without = spec(data={"path": "text", "seq_len": 7}, teacher=None, objective={"alpha": 1})
    require_startable(without, ready)


def test_the_only_layer_cannot_be_left_out(ready):
    write_student(ready.models / "student", ["a", "b", "c"], num_hidden_layers=1)
    cut = spec(student={"init": "student", "keep_every_nth_layer": 2})
    assert fields(first_error(cut, ready)) == ["student.keep_every_nth_layer"]


def test_adapters_on_missing_layers_are_refused_naming_the_existing_ones(ready):
    def adapted(*targets: str) -> RunSpec:
        lora = {"rank": 2, "targets": list(targets)}
        return spec(student={"init": "student", "lora": lora}, teacher=None, objective={"alpha": 1})

    error = first_error(adapted("up_proj", "q_proj"), ready)
    assert fields(error) == ["student.lora.targets"]
    assert "no layer q_proj; there are: up_proj" in str(error)
    require_startable(adapted("mlp.up_proj"), ready)
    assert fields(first_error(adapted("p_proj"), ready)) == ["student.lora.targets"]


@pytest.mark.parametrize(
    ("student", "field", "extra"),
    [({"init": "student", "lora": {}}, "student.lora", "lora"), ({}, "report_to", "wandb")],
)
def test_a_package_that_is_not_installed_is_refused(ready, monkeypatch, student, field, extra):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run = spec(
        student=student or {"init": "student"},
        teacher=None,
        objective={"alpha": 1},
        report_to=["wandb"] if not student else [],
    )
    error = first_error(run, ready)
    assert fields(error) == [field]
    assert f"pip install 'lectern[{extra}]'" in str(error)


def test_prompts_need_a_tokenizer_of_student_or_data(ready):
    run = spec(evaluation={"prompts": ["a"]}, teacher=None, objective={"alpha": 1})
    require_startable(run, ready)
    (ready.models / "student/tokenizer.json").unlink()
    require_startable(run, ready)
    (ready.data / "text/tokenizer.json").unlink()
    error = first_error(run, ready)
    assert fields(error) == ["evaluation.prompts"]
    assert "neither the student nor the data has a tokenizer.json" in str(error)


def test_adapters_on_the_teachers_own_weights_are_refused_and_some_of_its_layers_are_not(ready):
    """TEACHER-DIVERGENCE: with adapters a run starts as the teacher, with fewer layers not."""
    write_student(ready.models / "student", ["a", "b", "c"], num_hidden_layers=4)
    own = weights_sha256(safetensors_files(ready.models / "student"))
    with teacher_serving(["a", "b", "c"], weights=own) as address:
        teacher = {"address": address}
        adapted = {"init": "student", "lora": {"rank": 2}}
        assert isinstance(first_error(spec(student=adapted, teacher=teacher), ready), SameWeights)
        require_startable(
            spec(student=adapted, teacher={**teacher, "allow_same_weights": True}), ready
        )
        cut = {"init": "student", "keep_every_nth_layer": 2}
        require_startable(spec(student=cut, teacher=teacher), ready)


def test_examine_returns_what_it_found(ready):
    with teacher_serving(["a", "b", "c"]) as address:
        _, found = examine(spec(teacher={"address": address}), ready)
    assert found.rows == RowCounts(training=11, validation=1)
    assert found.manifest is not None and found.manifest.total_tokens == 100
    assert found.student.vocab_size == 3
    assert found.teacher is not None and found.teacher.model_id == "big"
    nothing = examine(spec(data={"path": "nothing"}), ready, 2.0)[1]
    assert (nothing.rows, nothing.manifest, nothing.teacher) == (None, None, None)


def test_no_check_reads_what_is_called_unread(roots: Roots) -> None:
    """A sweep checks runs that differ only in these once."""
    write_dataset(roots.data / "text", ["a", "b", "c"])
    write_student(roots.models / "small", ["a", "b", "c"])
    spec = parse_spec(
        {
            "name": "unread",
            "teacher": {"address": NOBODY},
            "student": {"init": "small"},
            "data": {"path": "text", "seq_len": 4},
            "evaluation": {"prompts": ["a"]},
            "objective": {"alpha": 0.3},
        }
    )
    read = {name: getattr(spec, name) for name in type(spec).model_fields if name not in UNREAD}
    left: dict[str, Any] = {"divergence": spec.objective.divergence}
    assert UNREAD["objective"] == set(type(spec.objective).model_fields) - set(left)
    objective = type(spec.objective).model_construct(**left)
    for name in UNREAD["objective"]:
        del objective.__dict__[name]
    bare = RunSpec.model_construct(**read, objective=objective)
    for name in UNREAD.keys() - {"objective"}:
        bare.__dict__.pop(name, None)
    with pytest.raises(AttributeError):
        _ = bare.optimizer
    with pytest.raises(AttributeError):
        _ = bare.objective.alpha
    whole, _ = examine(spec, roots, 0.2)
    checks, _ = examine(bare, roots, 0.2)
    assert [check.as_json() for check in checks] == [check.as_json() for check in whole]
    assert {check.subject for check in checks} >= {"data", "student", "tokenizer", "teacher"}
