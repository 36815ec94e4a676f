"""Folders that Secateur wrote, on the hub.

What has been public once stays so. So a model is private unless it is to be public; only what the manifest lists goes
along, with the card and ``.gguf`` files; and the manifest names no path of this machine there: of models and texts that
are local it keeps the last part of the name, as the card does.
"""

import json
import warnings
from pathlib import Path
from typing import Any

from secateur.checkpoint import CARD, MANIFEST, check_unchanged, manifest_of, unlisted_files
from secateur.checkpoint.durable import scratch_folder
from secateur.checkpoint.steps import ON_HUB, last_part
from secateur.data import parts_of, public_name
from secateur.errors import InputError, Notice, reason
from secateur.files import member, read_text

# How a card calls the folder that it lies in.
THIS = "THIS_FOLDER"


def push(folder: str | Path, name: str, *, public: bool = False) -> str:
    """Put a model folder on the hub, with its card; return its address there.

    An upload that was interrupted goes on where it was when it is asked for again.

    Args:
        folder: one that Secateur wrote, as it was written.
        name: on the hub, ``ORG/NAME``. It is made if need be; files of the same names are replaced.
        public: everybody may see it; else nobody but its owner. What is public already is refused without it.

    Raises:
        InputError: when the folder is none or has been changed, nobody is logged in, or the hub does not take it.
    """
    from huggingface_hub import HfApi, get_token

    folder = Path(folder)
    files = _files(folder)
    if not ON_HUB.fullmatch(name) or "/" not in name:
        raise InputError(f"{name!r} is no name on the hub: give ORG/NAME, such as my-name/{last_part(str(folder))}")
    if get_token() is None:
        raise InputError("nobody is logged in to the hub here: run `hf auth login`, or set HF_TOKEN")
    check_unchanged(folder, weights=True)
    with scratch_folder(None) as home:
        copy = home / "model"
        copy.mkdir()
        for path in files:
            (copy / path.name).symlink_to(path.resolve())
        manifest = _public(manifest_of(folder))
        (copy / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if card := member(folder, CARD):
            (copy / CARD).write_text(read_text(card).replace(THIS, name), encoding="utf-8", newline="\n")
        api = HfApi()
        try:
            address = str(api.create_repo(name, private=not public, exist_ok=True))
            if not public and not api.repo_info(name).private:
                raise InputError(
                    f"{name} is on the hub already, and public: give --public to push it there all the same"
                )
            api.upload_folder(repo_id=name, folder_path=copy, commit_message="Upload by secateur push")
        except InputError:
            raise
        except Exception as error:  # the hub's client raises whatever its transport raises
            raise InputError(
                f"the hub does not take {name} ({reason(error)}); check the name, the connection, and whether your "
                "token may write there. The same command goes on where it was"
            ) from error
    return address


def _files(folder: Path) -> list[Path]:
    """What goes along as it is; says what stays.

    Raises:
        InputError: when there is no such folder, or Secateur did not write it.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    listed = manifest_of(folder).get("files")
    if not isinstance(listed, dict):
        raise InputError(f"{folder} was not written by secateur: no {MANIFEST} there lists its files")
    others = unlisted_files(folder, listed)
    exported = [name for name in others if name.endswith(".gguf")]
    if left := sorted({*others} - {*exported}):
        warnings.warn(f"{', '.join(left[:5])} stay here: {MANIFEST} does not list them", Notice, stacklevel=3)
    found = {name: member(folder, Path(name).name) for name in [*listed, *exported]}
    return [path for path in found.values() if path is not None]


def _public(content: Any, key: str = "") -> Any:
    """``content`` of a manifest without paths of this machine."""
    if isinstance(content, dict):
        return {name: _public(value, name) for name, value in content.items()}
    if isinstance(content, list):
        return [_public(value) for value in content]
    if key == "model" and isinstance(content, str):
        return last_part(content) if Path(content).exists() or not ON_HUB.fullmatch(content) else content
    if key in ("calibration", "source") and isinstance(content, str):
        parts = parts_of(content)
        shares = [f":{float(part.share):g}" if len(parts) > 1 else "" for part in parts]
        return " ".join(public_name(part.source) + share for part, share in zip(parts, shares, strict=True))
    return content
