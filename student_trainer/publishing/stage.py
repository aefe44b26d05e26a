"""The stage `publish`: a plan, then an upload of exactly that, then proof that it is there."""

import shutil
from pathlib import Path
from typing import Any

from lectern_common.errors import Conflict
from lectern_common.roots import Roots
from lectern_common.stages.publish import PublishRequest
from lectern_common.stages.status import Report
from lectern_common.words import size
from student_trainer.publishing.hub import opened, require_token, uploaded
from student_trainer.publishing.plan import Plan, plan_text, planned
from student_trainer.publishing.verify import verified
from student_trainer.stop import Stop


def publish(
    asked: PublishRequest, roots: Roots, work: Path, *, stop: Stop, report: Report
) -> dict[str, Any]:
    """Plans a repository, and with `upload` uploads and verifies it.

    Returns {repository, private, files, card, plan_sha256, uploaded, commit, url, verified}; the
    last three are None, None and [] unless `uploaded`. A kill or a lost connection changes nothing
    on the hub but that the repository exists, empty or as it was, and that large files need not be
    sent again; the same request goes on.

    Raises:
        NotFound, Conflict, CorruptData, Misconfigured, InvalidRequest: as `planned` says.
        Conflict: the plan is not the one that was asked for, or the repository has other files.
        Unauthenticated: the hub does not accept the token, or there is none.
        HubUnavailable: the hub does not answer.
    """
    plan = planned(asked, roots, stop=stop, report=report)
    result = plan.as_json() | {"uploaded": False, "commit": None, "url": None, "verified": []}
    if not asked.upload:
        return result | {"markdown": plan_text(plan)}
    if asked.plan_sha256 not in (None, plan.sha256):
        raise Conflict(
            f"the plan has changed: its hash is {plan.sha256} now; look at it, then publish again"
        )
    require_token()
    stop.check()
    commit = _upload(plan, stop, report)
    folder = work / "downloaded"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        proved = verified(plan, commit, folder, stop=stop, report=report)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    from huggingface_hub import constants

    url = f"{constants.ENDPOINT}/{plan.repository}"
    result |= {"uploaded": True, "commit": commit, "url": url, "verified": proved}
    lines = [f"# {plan.repository}", "", f"Published at {url}, commit `{commit}`. Verified:", ""]
    return result | {"markdown": "\n".join([*lines, *(f"- {one}" for one in proved)]) + "\n"}


def _upload(plan: Plan, stop: Stop, report: Report) -> str:
    """Returns the commit."""
    opened(plan.repository, private=plan.private, planned={one.name for one in plan.files})
    plan.require_unchanged()
    stop.check()
    total = sum(one.num_bytes for one in plan.files)
    what = f"{len(plan.files)} files, {size(total)}"
    report(f"uploading plan {plan.sha256} to {plan.repository}: {what}", 0, 0)
    sources = {one.name: one.source for one in plan.files}
    return uploaded(plan.repository, sources, stop=stop, report=report)
