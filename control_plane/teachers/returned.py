"""Whether the teacher that a run was accepted with answers again."""

from collections.abc import Mapping

from control_plane.runs.healing import teacher_answers
from control_plane.runs.record import Run
from control_plane.teachers.secrets import require_secrets_known
from lectern_common.errors import LecternError, Overloaded, TeacherUnavailable
from lectern_common.roots import Roots
from lectern_common.teacher.identity import TeacherIdentity
from lectern_common.teacher.replicas import TeacherReplicas
from lectern_common.teacher.secrets import SecretFiles, read_secrets

ANSWER_SECONDS = 5.0


def teacher_obstacle(run: Run, roots: Roots, configured: Mapping[str, SecretFiles]) -> str | None:
    """Returns what the run still waits for; None if its teacher answers. Blocks meanwhile.

    Args:
        run: interrupted because its teacher was away.
        roots: for the secrets root.
        configured: the configured servers, and the secrets that may be sent to each.
    """
    try:
        teacher, expected = run.run_spec.teacher, run.taught_by
        if teacher is None or expected is None:
            return "it is resumed: its row does not name its teacher"
        waits_for = teacher_answers(teacher.address)
        require_secrets_known(teacher, configured)
        secrets = read_secrets(roots, SecretFiles.of(teacher))
        with TeacherReplicas(teacher.address, secrets.token, secrets.tls) as replicas:
            models, _ = replicas.get_models(ANSWER_SECONDS)
    except (TeacherUnavailable, Overloaded):
        return waits_for
    except LecternError as error:
        return f"its teacher answers again; now: {error}"
    for address, model in models.items():
        found = TeacherIdentity.of(model)
        if found.fingerprint != expected.fingerprint:
            return f"the teacher at {address} is {expected} again; now it is {found}"
    return None
