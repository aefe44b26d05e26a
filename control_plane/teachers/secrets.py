"""Which secrets are sent to which teacher: only those given when this process started.

Any client that may post a run writes its spec. If the spec were enough, it could have any file
under the secrets root sent to any address.
"""

from collections.abc import Mapping

from lectern_common.errors import InvalidSpec, Misconfigured
from lectern_common.spec.sections import TeacherSpec
from lectern_common.teacher.address import checked_address, replica_addresses
from lectern_common.teacher.secrets import SecretFiles, require_whole

# Field of a spec's `teacher` -> option of this process.
OPTIONS = {
    "token_file": "--teacher-token-file",
    "tls_ca_file": "--teacher-tls-ca",
    "tls_cert_file": "--teacher-tls-cert",
    "tls_key_file": "--teacher-tls-key",
}


def configured_teachers(addresses: list[str], files: SecretFiles) -> dict[str, SecretFiles]:
    """Returns the secrets of each server that `--teacher` names, the same for all.

    Raises:
        Misconfigured: an address is invalid, or an option has no effect.
    """
    named = files.named()
    if named and not addresses:
        raise Misconfigured(f"{OPTIONS[next(iter(named))]} has no effect without --teacher")
    try:
        require_whole(files)
    except ValueError:
        raise Misconfigured(
            "--teacher-tls-cert and --teacher-tls-key go together, with --teacher-tls-ca"
        ) from None
    found: dict[str, SecretFiles] = {}
    for text in addresses:
        try:
            address = checked_address(text)
        except ValueError as error:
            raise Misconfigured(f"--teacher {text}: {error}") from None
        found |= dict.fromkeys(replica_addresses(address), files)
    return found


def require_secrets_known(teacher: TeacherSpec, configured: Mapping[str, SecretFiles]) -> None:
    """Does what `require_files_known` does for the teacher of a spec."""
    require_files_known(teacher.address, SecretFiles.of(teacher), configured, "teacher.")


def require_files_known(
    address: str, files: SecretFiles, configured: Mapping[str, SecretFiles], section: str = ""
) -> None:
    """Raises unless a request names only the secrets that its address was configured with.

    No file is read, so a refusal does not reveal which files exist.

    Args:
        address: of the server that would get them; several are replicas.
        files: that the request names.
        configured: the secrets of each server.
        section: what stands before their names in the request.

    Raises:
        InvalidSpec: names each field and what to set.
    """
    named = files.named()
    if not named:
        return
    for server in replica_addresses(address):
        if server not in configured:
            options = " ".join(f"{OPTIONS[field]} {name}" for field, name in named.items())
            why = (
                f"the control plane does not know {server}, so it sends no secret there; start it "
                f"with --teacher {server} {options}, or leave this out"
            )
            raise InvalidSpec([(f"{section}{field}", why) for field in named])
        theirs = configured[server].named()
        problems = [
            (f"{section}{field}", _difference(server, field, theirs.get(field)))
            for field in OPTIONS
            if named.get(field) != theirs.get(field)
        ]
        if problems:
            raise InvalidSpec(problems)


def _difference(address: str, field: str, configured: str | None) -> str:
    if configured is None:
        return f"the control plane was started without {OPTIONS[field]} for {address}; leave it out"
    return f"the control plane was started with {OPTIONS[field]} {configured}; set this value"
