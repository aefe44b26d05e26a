"""Secrets go to the teachers that the control plane was started with, whoever writes the spec."""

import subprocess
import sys

import pytest
import yaml
from starlette.testclient import TestClient

from control_plane.api.app import create_app
from control_plane.plane import open_plane
from control_plane.teachers.secrets import configured_teachers, require_secrets_known
from control_plane.trainers.devices import Devices
from control_plane.trainers.launching.local import LocalLauncher
from lectern.demo.specs import student_specs
from lectern_common.errors import InvalidSpec, Misconfigured
from lectern_common.spec.load import load_spec
from lectern_common.spec.sections import TeacherSpec
from lectern_common.teacher.secrets import SecretFiles
from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from tests.control_plane.api.test_routes import problem_of, stopped
from tests.control_plane.conftest import BASE_URL, ROOT, make_home
from tests.control_plane.teachers.test_checks import TOKENS, distilling, write_student
from tests.support.fakes import FakeTeacher, serving

KNOWN = "teacher:50051"
TOKEN = "0123456789abcdef" * 2
MUTUAL = {"tls_ca_file": "ca", "tls_cert_file": "mine", "tls_key_file": "mine.key"}


def problems(configured: dict[str, SecretFiles], **teacher: str) -> dict[str, str]:
    """Returns the problem of each field; empty if the secrets may be sent."""
    try:
        require_secrets_known(TeacherSpec(**teacher), configured)
    except InvalidSpec as error:
        return dict(error.problems)
    return {}


def test_a_spec_without_secrets_may_use_any_teacher():
    assert problems({}, address="anywhere:1") == {}
    assert problems({KNOWN: SecretFiles("token")}, address="anywhere:1") == {}
    assert problems({KNOWN: SecretFiles("token")}, address=KNOWN) == {}


def test_the_configured_secrets_may_be_sent_to_the_configured_address():
    assert problems({KNOWN: SecretFiles("token")}, address=KNOWN, token_file="token") == {}
    assert problems({KNOWN: SecretFiles("token")}, address=KNOWN, token_file="./token") == {}
    whole = SecretFiles("token", **MUTUAL)
    assert problems({KNOWN: whole}, address=KNOWN, token_file="token", **MUTUAL) == {}


@pytest.mark.parametrize(
    "address",
    [
        "evil:50051",
        "teacher:50052",
        "Teacher:50051",
        "dns:///teacher:50051",
        f"{KNOWN},evil:50051",
        f"evil:50051,{KNOWN}",
    ],
)
@pytest.mark.parametrize("files", [{"token_file": "token"}, MUTUAL])
def test_no_secret_goes_to_another_address(address, files):
    configured = {KNOWN: SecretFiles(**files)}
    said = problems(configured, address=address, **files)
    assert said.keys() == {f"teacher.{field}" for field in files}
    for sentence in said.values():
        assert "--teacher " in sentence and "does not know" in sentence


@pytest.mark.parametrize(
    ("files", "field", "says"),
    [
        ({"token_file": "database"}, "token_file", "--teacher-token-file token; set this value"),
        ({"token_file": "token", "tls_ca_file": "ca"}, "tls_ca_file", "leave it out"),
        ({"tls_ca_file": "ca"}, "tls_ca_file", "without --teacher-tls-ca for teacher:50051"),
    ],
)
def test_no_other_secret_goes_to_the_configured_address(files, field, says):
    said = problems({KNOWN: SecretFiles("token")}, address=KNOWN, **files)
    assert says in said[f"teacher.{field}"]


def test_a_token_that_belongs_to_tls_is_not_sent_in_plaintext():
    configured = {KNOWN: SecretFiles("token", "ca")}
    said = problems(configured, address=KNOWN, token_file="token")
    assert said == {
        "teacher.tls_ca_file": "the control plane was started with --teacher-tls-ca ca; set this "
        "value"
    }


def test_each_replica_must_be_configured():
    configured = configured_teachers(["a:1,b:1", "c:1"], SecretFiles("token"))
    assert configured == dict.fromkeys(("a:1", "b:1", "c:1"), SecretFiles("token"))
    assert problems(configured, address="c:1,a:1", token_file="token") == {}
    assert problems(configured, address="c:1,d:1", token_file="token") != {}
    named = configured_teachers(["dns:///a:1"], SecretFiles("token"))
    assert problems(named, address="dns:///a:1", token_file="token") == {}


@pytest.mark.parametrize("compose", ["compose.yaml", "compose.cpu.yaml"])
def test_the_runs_of_the_compose_files_may_send_their_token(compose):
    services = yaml.safe_load((ROOT / "docker" / compose).read_text())["services"]
    options = dict(
        word.split("=", 1) for word in services["control-plane"]["command"] if "=" in word
    )
    configured = configured_teachers(
        [options["--teacher"]], SecretFiles(options["--teacher-token-file"])
    )
    example = load_spec(ROOT / "docker" / "specs" / "coder-0.5b.yaml")
    demo = student_specs("teacher:50051", 0, 10, token_file="teacher")[1]
    for spec in (example, demo):
        assert spec.teacher is not None and spec.teacher.token_file == "teacher"
        require_secrets_known(spec.teacher, configured)


@pytest.mark.parametrize(
    ("addresses", "files", "says"),
    [
        ([], SecretFiles("t"), "--teacher-token-file has no effect without --teacher"),
        ([], SecretFiles(tls_ca_file="t"), "--teacher-tls-ca has no effect without --teacher"),
        ([KNOWN], SecretFiles(tls_cert_file="t"), "go together"),
        ([KNOWN], SecretFiles(tls_cert_file="c", tls_key_file="k"), "with --teacher-tls-ca"),
        (["teacher"], SecretFiles(), "--teacher teacher: must be host:port"),
        (["a:1,a:1"], SecretFiles(), "names a:1 twice"),
    ],
)
def test_options_without_effect_or_meaning_are_refused(addresses, files, says):
    with pytest.raises(Misconfigured, match=says):
        configured_teachers(addresses, files)


def test_the_process_accepts_the_options(tmp_path):
    argv = [sys.executable, "-m", "control_plane", "--bind", "127.0.0.1:0", "--home", str(tmp_path)]
    options = ["--teacher-token-file", "t", "--teacher-tls-ca", "ca", "--teacher-tls-cert", "c"]
    done = subprocess.run(
        [*argv, "--teacher", KNOWN, *options], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert "--teacher-tls-cert and --teacher-tls-key go together" in done.stderr


# ---- over REST -----------------------------------------------------------------------------------


@pytest.fixture
def teacher():
    return FakeTeacher(TOKENS, tokenizer_sha256=tokenizer_sha256(TOKENS), num_tokens=3)


def test_a_run_cannot_have_a_secret_sent_to_a_teacher_it_names(tmp_path, processes, teacher):
    """The teacher at the posted address must see no call at all."""
    calls: list[str] = []
    teacher._refuse = lambda context: calls.append("called")
    roots = make_home(tmp_path)
    roots.secrets.mkdir()
    for name in ("token", "other"):
        (roots.secrets / name).write_text(TOKEN)
    with serving(teacher) as configured, serving(FakeTeacher(TOKENS)) as elsewhere:
        plane = open_plane(
            roots,
            devices=Devices((), max_running=2),
            teachers={configured: SecretFiles("token")},
            launcher=LocalLauncher(processes),
        )
        with TestClient(create_app(plane), base_url=BASE_URL) as client:
            write_student(plane)
            body = distilling(elsewhere, teacher={"token_file": "token"})
            problem = problem_of(client.post("/runs", json=body), 422, "invalid_spec")
            assert problem["errors"][0]["field"] == "teacher.token_file"
            body = distilling(configured, teacher={"token_file": "other"})
            problem_of(client.post("/runs", json=body), 422, "invalid_spec")
            # Nor does a refusal tell which files there are.
            body = distilling(configured, teacher={"token_file": "not-there"})
            assert "cannot read" not in str(client.post("/runs", json=body).json())
            assert calls == []

            run = stopped(
                client, processes, **distilling(configured, teacher={"token_file": "token"})
            )
            assert calls != []
            change = {"teacher": {"address": elsewhere}}
            answer = client.post(f"/runs/{run['id']}/resume", json=change)
            problem = problem_of(answer, 422, "invalid_spec")
            assert problem["errors"][0]["field"] == "teacher.token_file"
            change = {"teacher": {"token_file": "other"}}
            problem_of(client.post(f"/runs/{run['id']}/resume", json=change), 422, "invalid_spec")
            assert client.post(f"/runs/{run['id']}/resume").status_code == 202


def test_each_replica_is_shown_with_its_runs_and_probed_with_its_secrets(tmp_path, processes):
    roots = make_home(tmp_path)
    roots.secrets.mkdir()
    (roots.secrets / "token").write_text(TOKEN)
    tokens: dict[str, set] = {}

    class Noting(FakeTeacher):
        def _refuse(self, context):
            sent = dict(context.invocation_metadata()).get("authorization")
            tokens.setdefault(self.model.model_id, set()).add(sent)

    fits = {"tokenizer_sha256": tokenizer_sha256(TOKENS), "num_tokens": 3}
    made = [Noting(TOKENS, model_id=f"teacher-{name}", **fits) for name in "abc"]
    with serving(made[0]) as a, serving(made[1]) as b, serving(made[2]) as c:
        plane = open_plane(
            roots,
            devices=Devices((), max_running=2),
            teachers=configured_teachers([f"{a},{b}"], SecretFiles("token")),
            launcher=LocalLauncher(processes),
        )
        with TestClient(create_app(plane), base_url=BASE_URL) as client:
            write_student(plane)
            body = distilling(f"{b},{a}", teacher={"token_file": "token"})
            first = client.post("/runs", json=body).json()
            second = client.post("/runs", json=distilling(c)).json()
            shown = client.get("/teachers").json()["teachers"]
    assert [(entry["address"], entry["runs"], entry["configured"]) for entry in shown] == [
        (a, [first["id"]], True),
        (b, [first["id"]], True),
        (c, [second["id"]], False),
    ]
    assert tokens == {
        "teacher-a": {f"Bearer {TOKEN}"},
        "teacher-b": {f"Bearer {TOKEN}"},
        "teacher-c": {None},
    }
