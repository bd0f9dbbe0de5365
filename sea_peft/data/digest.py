"""Hashes that tell whether data are the same, and names that reveal nothing.

Content digests depend on voxels and geometry only, never on paths or names. Case names are written
only as salted hashes; salt and names stay in a local map.
"""

import hashlib
import hmac
from collections.abc import Iterable

import numpy as np

from sea_peft.data.volumes import Volume


def case_hash(case_id: str, salt: str) -> str:
    """The name of a case in traces, reports and MLflow: `case-` and 10 hexadecimal digits."""
    return f"case-{hmac.new(salt.encode(), case_id.encode(), 'sha256').hexdigest()[:10]}"


def voxel_hash(array: np.ndarray) -> str:
    """Hash of shape, type and voxels. Scans with the same voxels have the same hash, in a file
    or in memory.
    """
    digest = hashlib.blake2b(repr((array.shape, array.dtype.str)).encode(), digest_size=16)
    # First axis fastest, the order in files, so that no copy is made
    digest.update(array.ravel(order="F").view(np.uint8).data)
    return digest.hexdigest()


def volume_digest(volume: Volume, voxels: str) -> str:
    """Hash of a volume's affine and of its `voxel_hash`."""
    return hashlib.sha256(voxels.encode() + volume.affine.tobytes()).hexdigest()


def data_digest(case_digests: Iterable[Iterable[str]]) -> str:
    """One digest of a data set from the volume digests of each case, independent of the cases'
    order and names.
    """
    cases = sorted("+".join(digests) for digests in case_digests)
    return hashlib.sha256("\n".join(cases).encode()).hexdigest()
