"""What a run sends to the Hub when it is over: the folder `model/`, as it is."""

from pathlib import Path

from huggingface_hub import HfApi, get_token

from modeling_detr.training.recipe import Recipe


class PushError(OSError):
    """A push failed; the message says how to push later what lies on the disk."""


def push_notes(recipe: Recipe) -> list[str]:
    """What the plan says of the push at the end of a run."""
    if recipe.push_to_hub is None:
        return []
    notes = [f"the best model is pushed to {recipe.push_to_hub} at the end"]
    if get_token() is None:
        notes.append("there is no token of the Hub on this machine: `hf auth login` before the run ends, or HF_TOKEN")
    return notes


def push_model(folder: Path, repository: str, private: bool, message: str) -> str:
    """Uploads a model's folder, in one commit, to a repository that is made if it is not there.

    Args:
        folder: What `export_model` wrote.
        repository: `owner/name`.
        private: Make a new repository private.
        message: The commit's message.

    Returns:
        The repository's address.

    Raises:
        PushError: It failed, for whatever reason: no token, no right, no network.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:  # the client and the network raise much, and none of it may look like a lost run
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PushError(
            f"the push to {repository} failed ({reason}). Nothing is lost: the model is in {folder}. Push it later "
            f"with: hf upload {repository} {folder}"
        ) from error
    return str(address)
