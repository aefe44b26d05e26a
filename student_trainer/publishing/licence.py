"""The licence of a student: inherited from the model that it starts from, or given by its owner."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lectern_common.errors import InvalidRequest, Misconfigured
from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.run_spec import RunSpec
from lectern_common.stages.publish import MAX_LICENSE_CHARACTERS, PublishRequest
from student_trainer.publishing.hub import fetched

LICENSE_FILES = ("LICENSE*", "LICENCE*", "COPYING*")
_CARD_NAME = "README.md"
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_OTHER = "other"
# What says which licence it is; of "other" only these say it.
_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Base:
    """The model that a student starts from.

    Attributes:
        name: as the spec has it.
        hub_id: the same if it comes from the model hub, else None.
        revision: the hub commit, None for a local model.
        fields: license, license_name and license_link of its card, as far as it has them.
        texts: name -> content of its licence files.
    """

    name: str
    hub_id: str | None
    revision: str | None
    fields: dict[str, str]
    texts: dict[str, bytes]


@dataclass(frozen=True)
class Licence:
    """What a repository says of its licence.

    Attributes:
        fields: license, and for `other` license_name and license_link.
        files: name -> content of the licence's text.
        why: where it comes from, a sentence.
    """

    fields: dict[str, str]
    files: dict[str, bytes]
    why: str


def base_of(spec: RunSpec, metadata: Mapping[str, Any], roots: Roots) -> Base | None:
    """Returns the model that a student starts from; None for a student from scratch.

    Raises:
        HubUnavailable: it comes from the hub, which does not answer, and is not in the hub's cache.
    """
    name = spec.student.init
    if name is None:
        return None
    folder, hub_id, revision = resolve_under(roots.models, name, "student.init"), None, None
    if not folder.is_dir():
        hub_id, revision = name, metadata.get("student_revision")
        folder = fetched(name, revision, [_CARD_NAME, *LICENSE_FILES])
    texts = {
        path.name: path.read_bytes()[:MAX_LICENSE_CHARACTERS]
        for pattern in LICENSE_FILES
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }
    return Base(name, hub_id, revision, _fields(folder / _CARD_NAME), texts)


def licence_of(asked: PublishRequest, base: Base | None) -> Licence:
    """Returns the licence to publish under.

    Raises:
        Misconfigured: nothing says what it is.
        InvalidRequest: the request gives another one than the student inherits.
    """
    inherited = {} if base is None else base.fields
    if base is not None and inherited:
        if asked.license not in (None, inherited["license"]):
            raise InvalidRequest(
                f"{base.name}, which the student starts from, is under {inherited['license']}, and "
                f"the student inherits that: leave the licence {asked.license} out",
                field="license",
            )
        if asked.license_text is not None and base.texts:
            raise InvalidRequest("the student inherits the licence's text", field="license_text")
        files = dict(base.texts) or _text(asked)
        return Licence(inherited, files, f"Inherited from {base.name}.")
    if asked.license is None:
        what = "the student starts from no other model"
        if base is not None:
            what = f"the card of {base.name}, which the student starts from, names none"
        raise Misconfigured(
            f"nothing says under which licence to publish: {what}. Give one as the hub names it, "
            "with --license (such as apache-2.0)"
        )
    if asked.license == _OTHER and asked.license_text is None and (base is None or not base.texts):
        raise InvalidRequest(
            "the licence `other` says nothing without its text: give it with --license-file",
            field="license_text",
        )
    files = _text(asked) or ({} if base is None else dict(base.texts))
    fields = {"license": asked.license}
    if asked.license == _OTHER:
        fields |= {"license_name": "see-license-file", "license_link": next(iter(files))}
    return Licence(fields, files, "Given by its publisher.")


def _text(asked: PublishRequest) -> dict[str, bytes]:
    return {} if asked.license_text is None else {"LICENSE": asked.license_text.encode()}


def _fields(card: Path) -> dict[str, str]:
    """Returns what a card says of its licence; {} if it names none, or several."""
    try:
        front = _FRONT_MATTER.match(card.read_bytes().decode(errors="replace"))
        values = yaml.safe_load(front.group(1)) if front else None
    except (OSError, yaml.YAMLError):
        return {}
    if not isinstance(values, dict):
        return {}
    if isinstance(values.get("license"), list) and len(values["license"]) == 1:
        values["license"] = values["license"][0]
    found = {key: values[key] for key in _KEYS if isinstance(values.get(key), str)}
    return found if "license" in found else {}
