"""The results and the command on an export's card, and its upload to the Hugging Face Hub."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignrun.errors import InputError, RunError, one_line
from alignrun.models.cards import README
from alignrun.run.directory import RunDirectory
from alignrun.security.files import read_json

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def add_record(folder: Path, run: RunDirectory, step: int) -> None:
    """Append to the card of an export how the policy was evaluated, if at this step, and the command that trained it.

    Raises:
        InputError: summary.json or overrides.yaml is damaged.
    """
    parts = []
    summary = read_json(run.summary_file) if run.summary_file.is_file() else {}
    if isinstance(summary, dict) and summary.get("step") == step:
        numbers = {name: value for name, value in summary.items() if type(value) in (int, float)}
        lines = "\n".join(f"{json.dumps(name)}: {value:.6g}" for name, value in numbers.items())
        parts.append(f"## Results\n\nThe run's evaluation of these weights:\n\n```yaml\n{lines}\n```\n")
    # The folder of the run means nothing to others.
    typed = [part for part in run.read_overrides() or [] if not part.startswith("run.dir=")]
    command = shlex.join(["alignrun", *typed]).replace("```", "`` `")
    parts.append(f"## Command\n\n```\n{command}\n```\n")
    card = folder / README
    card.write_text("\n".join([card.read_text("utf-8"), *parts]), encoding="utf-8")


def check_push(repository: str) -> None:
    """Refuse an upload that cannot succeed, before anything is written.

    Raises:
        InputError: the name is not one, or nobody is logged in.
        RunError: the hub cannot be reached.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public by its documentation

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"--push {repository}: {one_line(error, 160)}") from None
    if repository.count("/") != 1:
        raise InputError(f"--push {repository} names no owner: write --push OWNER/NAME")
    with _hub_errors(repository, ""):
        _api().whoami()


def push(folder: Path, repository: str, message: str, *, public: bool) -> str:
    """Upload a folder as one commit to a model repository, which is made if it does not exist, private by default.

    Files of the same names are replaced in a new commit; the repository's history keeps them. Returns the address.

    Raises:
        InputError: the user may not write there.
        RunError: the hub cannot be reached or refuses the files. The folder stays.
    """
    with _hub_errors(repository, f"; the export is complete in {folder}"):
        api = _api()
        address = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    return str(address)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


@contextmanager
def _hub_errors(repository: str, kept: str) -> Iterator[None]:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except LocalTokenNotFoundError:
        raise InputError(f"--push {repository}: nobody is logged in to the hub: {LOG_IN}{kept}") from None
    except OfflineModeIsEnabled:
        raise InputError(f"--push {repository}: HF_HUB_OFFLINE is set: unset it{kept}") from None
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code in (401, 403):
            raise InputError(f"--push {repository}: the hub refuses your token: {LOG_IN}{kept}") from None
        raise RunError(f"--push {repository}: the hub answers {one_line(error, 160)}{kept}") from None
    except (OSError, httpx2.TransportError) as error:  # no route, no name, a connection that breaks
        raise RunError(f"--push {repository}: the hub cannot be reached ({one_line(error, 120)}){kept}") from None
