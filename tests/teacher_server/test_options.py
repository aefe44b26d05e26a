"""The command line as settings."""

import pytest

from teacher_server.limits import Limits
from teacher_server.options import limits_of, options_parser, sharing_of
from teacher_server.sharing import Sharing


def parsed(*argv: str):
    return options_parser().parse_args(argv)


def test_defaults_are_those_of_the_settings() -> None:
    assert limits_of(parsed()) == Limits()
    assert sharing_of(parsed()) == Sharing()


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
        ("--run-quota", "coder=inf"),
        ("--run-quota", "coder=-1"),
        ("--cache-bytes", "-1"),
        ("--cache-bytes", "1e9"),
        ("--batch-tokens", "0"),
        ("--drain-seconds", "nan"),
        ("--mode", "fast"),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(f"{option}={value}")
    assert ended.value.code == 2
    assert option in capsys.readouterr().err
