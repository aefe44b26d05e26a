import pytest

from lectern.options import control_plane, given, logs_of
from lectern_common.errors import Misconfigured

URL = "http://127.0.0.1:1"


def authorization(token_file) -> str | None:
    with control_plane(URL, token_file) as service:
        value: str | None = service._transport.http.headers.get("authorization")
        return value


def test_the_token_comes_from_the_file_else_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("LECTERN_TOKEN", raising=False)
    path = tmp_path / "token"
    path.write_text("from-the-file\n")
    assert authorization(None) is None

    monkeypatch.setenv("LECTERN_TOKEN", "from-the-environment")
    assert authorization(None) == "Bearer from-the-environment"
    assert authorization(path) == "Bearer from-the-file"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff"])
def test_a_token_file_without_a_token_is_refused(tmp_path, content):
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(Misconfigured, match="token"):
        control_plane(URL, path)


def test_only_options_that_are_set_are_passed_on():
    assert given({"--a": 1, "--b": None, "--c": "x y", "--d": 0}) == [
        "--a",
        "1",
        "--c",
        "x y",
        "--d",
        "0",
    ]


def test_logs_go_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LECTERN_HOME", str(tmp_path / "environment"))

    assert logs_of(tmp_path / "given") == tmp_path / "given/logs"
    assert logs_of(None) == tmp_path / "environment/logs"
