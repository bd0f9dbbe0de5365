"""Results of earlier predictions in the output folder: kept, replaced on request, or refused. Their
sidecars decide which.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from sea_peft import documents
from sea_peft.data.cases import FileCase
from sea_peft.errors import UsageError
from sea_peft.jobs.case_results import MAKER, CaseFiles, CaseWriter, too_long
from sea_peft.jobs.quality import Judged
from sea_peft.jobs.statistics import Sidecar, are_numbers, digest_of

_OTHERWISE = {
    **dict.fromkeys(("mask", "labels", "channels", "adapter"), "with another adapter"),
    "network": "with another --use",
    "kept": "with other rules of --keep",
    "ensemble": "with other adapters beside it (--with)",
    "disagreement_map": "with other adapters beside it (--with)",
}
"""Key of a sidecar → how a result that differs there was made; other keys are options of their
own.
"""


def predicted_before(
    writer: CaseWriter, cases: Sequence[FileCase], targets: Mapping[str, CaseFiles]
) -> dict[str, Sidecar]:
    """Case → sidecar of each earlier prediction that is up to date.

    It must come from the same adapter, network, options and files, with every wanted result there.
    """
    found = {case.id: _read(targets[case.id].sidecar) for case in cases}
    return {
        case.id: sidecar
        for case in cases
        if (sidecar := found[case.id]) is not None
        and not _differences(sidecar, writer, case, targets[case.id])
    }


def _differences(
    found: Sidecar, writer: CaseWriter, case: FileCase, files: CaseFiles
) -> tuple[str, ...]:
    """How the earlier result with this sidecar was made otherwise, in words that follow "was
    made"; nothing if it is up to date.
    """
    wanted = writer.depends_on(files)
    said = [
        _OTHERWISE.get(key, f"without --{key.replace('_', '-')}")
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    labels = writer.predictor.labels
    if writer.statistics and not are_numbers(found.get("statistics"), labels):
        said.append("without --statistics")
    if writer.qc is not None and Judged.from_json(found.get("qc")) is None:
        said.append("without --qc")
    volumes = found.get("volumes_ml")
    if (
        not isinstance(volumes, dict)
        or volumes.keys() != set(labels)
        or not all(map(_is_number, volumes.values()))
        or (files.disagreement and not _are_shares(found.get("disagreement"), labels))
        or not all(path.is_file() for path in files.all)
    ):
        said = said or ["but is not whole any more"]
    if not said and found.get("input_sha256") != digest_of(case):  # last: it reads the scan
        said = ["from another scan"]
    return tuple(dict.fromkeys(said))


def refuse_to_replace(
    cases: Sequence[FileCase],
    targets: Mapping[str, CaseFiles],
    overwrite: bool,
    resumed: CaseWriter | None,
) -> None:
    """Raise UsageError if predicting these cases would replace an input, a file that is no result,
    or (without `overwrite`) results.

    `resumed`: given if cases whose results are up to date have been taken out of the cases.
    """
    sources = {
        path.resolve() for case in cases for image in case.images.values() for path in image.files
    }
    written: set[Path] = set()
    for case in cases:
        files, found = targets[case.id], _read(targets[case.id].sidecar)
        mask = _mask_of(found)
        left_by_a_killed_process = mask == files.mask.name and not files.mask.exists()
        for path in files.all:
            if too_long(path):
                continue
            if path.resolve() in sources:
                raise UsageError(f"{path} is an input and would be replaced; choose another --out.")
            if path.exists() and mask is None:
                raise UsageError(
                    f"{path} exists and is no earlier prediction (those have a {files.sidecar.name}"
                    " beside them), so it is never replaced; choose another --out."
                )
            if path.exists() and not overwrite and not left_by_a_killed_process:
                assert found is not None, "else it was no earlier prediction"
                if resumed is None:
                    raise UsageError(
                        f"{path} exists already; choose another --out, keep what was predicted"
                        " before with --resume, or replace it with --overwrite."
                    )
                made = " and ".join(_differences(found, resumed, case, files))
                raise UsageError(
                    f"{path} exists already, and was made {made}; choose another --out, or replace"
                    " such results with --overwrite."
                )
            if path in written:
                raise UsageError(
                    f"Two results would be called {path.name}; rename a case or a label."
                )
            written.add(path)


def _mask_of(found: Sidecar | None) -> str | None:
    """The mask's name in a sidecar of `predict`; None if it is no such sidecar."""
    ours = found is not None and str(found.get("made_by")).startswith(f"{MAKER} ")
    return str(found.get("mask")) if found is not None and ours else None


def _read(sidecar: Path) -> Sidecar | None:
    try:
        found = documents.load(documents.read_bytes(sidecar))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _are_shares(found: object, labels: Collection[str]) -> bool:
    """Whether this is the disagreement of several adapters about these labels."""
    if not isinstance(found, dict) or found.keys() != set(labels):
        return False
    return all(value is None or (_is_number(value) and 0 <= value <= 1) for value in found.values())


def _is_number(found: object) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool)
