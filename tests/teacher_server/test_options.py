"""The command line as settings."""

import dataclasses
from pathlib import Path

import pytest

from lectern_common.errors import Misconfigured
from lectern_common.teacher.options import LIMIT_OPTIONS, TEACHER_OPTIONS
from protos import teacher_pb2
from teacher_server.options import limits_of, options_parser, require_engine_fits, sharing_of
from teacher_server.rpc import replies
from teacher_server.rpc.limits import Limits, request_bytes
from teacher_server.scheduling.sharing import Sharing
from tests.teacher_server.rpc.test_validation import FACTS

FIXTURE = ("--engine", "fixture", "--vocab-size", "97")


def parsed(*argv: str):
    return options_parser().parse_args(argv)


def test_defaults_are_those_of_the_settings() -> None:
    default = Limits()
    largest = request_bytes(default.max_tokens, default.max_sequences)
    assert limits_of(parsed()) == dataclasses.replace(default, max_request_bytes=largest)
    assert sharing_of(parsed()) == Sharing()


def test_every_limit_except_the_request_size_is_an_option() -> None:
    names = {field.name for field in dataclasses.fields(Limits)} - {"max_request_bytes"}
    assert {option.name for option in LIMIT_OPTIONS} == names


def test_the_table_and_the_parser_hold_the_same_options() -> None:
    flags = [action.option_strings[0] for action in options_parser()._actions]
    assert flags[1:] == [option.flag for option in TEACHER_OPTIONS.values()]
    assert flags[0] == "-h"


def test_weights_and_quotas_keep_their_order() -> None:
    options = parsed(
        "--run-weight", "coder-*=2", "--run-weight", "*=0.5", "--run-quota", "a=b-*=1000"
    )
    sharing = sharing_of(options)
    assert list(sharing.weights.items()) == [("coder-*", 2.0), ("*", 0.5)]
    assert dict(sharing.quotas) == {"a=b-*": 1000.0}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--run-weight", "coder"),
        ("--run-weight", "=2"),
        ("--run-weight", "coder=0"),
        ("--run-weight", "coder=nan"),
        ("--run-weight", "coder=0.0009"),
        ("--run-weight", "coder=1000.1"),
        ("--run-weight", "coder=1e-308"),
        ("--run-quota", "coder=inf"),
        ("--run-quota", "coder=-1"),
        ("--cache-bytes", "-1"),
        ("--cache-bytes", "1e9"),
        ("--batch-tokens", "0"),
        ("--drain-seconds", "nan"),
        ("--mode", "fast"),
    ],
)
def test_an_invalid_value_is_refused_by_name(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(f"{option}={value}")
    assert ended.value.code == 2
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        ("--model", "some/model"),
        ("--revision", "main"),
        ("--gguf-file", "a.gguf"),
        ("--mode", "throughput"),
        ("--dtype", "float32"),
        ("--quantization", "int8"),
        ("--attention", "eager"),
        ("--device", "cpu"),
        ("--compile",),
        ("--threads", "2"),
    ],
)
def test_options_that_a_fixture_ignores_are_refused_by_name(given: tuple[str, ...]) -> None:
    require_engine_fits(parsed("--model", "some/model", *given))
    require_engine_fits(parsed(*FIXTURE, "--batch-tokens", "64", "--cache-bytes", "0"))
    says = f"^{given[0]} has no effect with --engine fixture; leave it out$"
    with pytest.raises(Misconfigured, match=says):
        require_engine_fits(parsed(*FIXTURE, *given))


def test_a_cache_folder_size_needs_a_cache_folder() -> None:
    with pytest.raises(Misconfigured, match="--cache-folder-bytes has no effect without"):
        sharing_of(parsed("--cache-folder-bytes", "1000"))
    folder = ("--cache-folder", "rows")
    sharing = sharing_of(parsed(*folder, "--cache-folder-bytes", "1000"))
    assert (sharing.cache_folder, sharing.cache_folder_bytes) == (Path("rows"), 1000)
    assert sharing_of(parsed(*folder)).cache_folder_bytes == Sharing().cache_folder_bytes


@pytest.mark.parametrize("option", ["--run-weight", "--run-quota"])
def test_a_pattern_that_is_given_twice_is_refused(option: str) -> None:
    with pytest.raises(Misconfigured, match=f"{option} a-. is given twice"):
        sharing_of(parsed(option, "a-*=2", option, "b=3", option, "a-*=5"))


def test_weights_themselves_are_allowed() -> None:
    options = parsed("--run-weight", "a=0.001", "--run-weight", "b=1000")
    assert sharing_of(options).weights == {"a": 0.001, "b": 1000.0}


@pytest.mark.parametrize(
    ("option", "most"),
    [
        ("--max-sequences", 2**32 - 1),
        ("--max-tokens", 2**32 - 1),
        ("--max-sequence-tokens", 2**32 - 1),
        ("--max-top-k", 2**32 - 1),
        ("--max-draws", 256),
        ("--max-reply-bytes", 2**64 - 1),
        ("--max-queued-requests", 2**32 - 1),
    ],
)
def test_a_limit_must_fit_its_field_in_the_protocol(option: str, most: int) -> None:
    limits = limits_of(parsed(option, str(most)))
    field = option.removeprefix("--").replace("-", "_")
    assert getattr(replies.model(FACTS, limits).limits, field) == most
    with pytest.raises(Misconfigured, match=f"{option} {most + 1}: it must be at most {most}$"):
        limits_of(parsed(option, str(most + 1)))


def test_other_sizes_must_fit_their_fields_in_the_protocol() -> None:
    most = 2**64 - 1
    folder = ("--cache-folder", "rows")
    assert sharing_of(parsed("--cache-bytes", str(most))).cache_bytes == most
    teacher_pb2.CacheStats(capacity_bytes=most, disk_capacity_bytes=most)
    for option in ("--cache-bytes", "--cache-folder-bytes"):
        with pytest.raises(Misconfigured, match=f"{option} {most + 1}: it must be at most"):
            sharing_of(parsed(*folder, option, str(most + 1)))
    with pytest.raises(Misconfigured, match="--vocab-size 4294967296: it must be at most"):
        require_engine_fits(parsed("--engine", "fixture", "--vocab-size", str(2**32)))
