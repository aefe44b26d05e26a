import stat

import pytest


def test_a_token_is_created_once_and_readable_only_by_its_owner(lectern, tmp_path):
    path = tmp_path / "secrets/teacher"

    first = lectern("token", "create", "teacher", "--home", tmp_path)
    token = path.read_text()
    second = lectern("token", "create", "teacher", "--home", tmp_path)

    assert first.code == second.code == 0
    assert path.read_text() == token
    assert len(token.strip()) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert token.strip() not in first.out + first.err + second.out + second.err


@pytest.mark.parametrize("name", ["../teacher", "/teacher"])
def test_a_token_stays_under_the_secrets_root(lectern, tmp_path, name):
    ended = lectern("token", "create", name, "--home", tmp_path / "home")

    assert ended.code == 2
    assert "leads outside" in ended.err
    assert not (tmp_path / "home/teacher").exists()
