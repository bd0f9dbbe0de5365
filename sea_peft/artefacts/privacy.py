"""What must not leave the run folder: file paths, which can name patients and hospitals, and the
digest of the data, the key of case hashes.
"""

import hashlib
import re
from collections.abc import Iterator

_FILES = "nii|gz|nrrd|nhdr|mha|mhd|dcm|json|toml|csv|pt|pth|ckpt|safetensors|zip|h5|npz|py"
_PATH = re.compile(
    # starts like a path or URL
    r"^(~|/|\.{1,2}[/\\]|\\|[A-Za-z]:[\\/]|file:|[A-Za-z][A-Za-z0-9+.-]*://)"
    rf"|[/\\].*\.({_FILES})$",  # folder/file.suffix
    re.IGNORECASE,
)


def looks_like_path(text: str) -> bool:
    """Whether `text` reads as a path or URL of a file; module paths (`up.0.conv`) and
    `liver/left` do not.
    """
    return _PATH.search(text) is not None


def paths_in(value: object) -> Iterator[str]:
    """Every string inside JSON-like `value`, keys included, that looks like a path."""
    if isinstance(value, str):
        if looks_like_path(value):
            yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from paths_in(key)
            yield from paths_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from paths_in(item)


def public_digest(digest: str) -> str:
    """A digest of the data that may be published, to tell whether data are the same.

    Case ids are hashed with `digest` itself, and whoever has that could try a list of names.
    """
    return hashlib.sha256(f"public:{digest}".encode()).hexdigest()
