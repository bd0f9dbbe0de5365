"""`seapeft export`: writes an adapted network for other tools. The receiving tool must run it
before its folder appears.
"""

import contextlib
import dataclasses
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from sea_peft import atomic
from sea_peft.backbones.typed import NOTHING, Typed
from sea_peft.errors import UsageError
from sea_peft.jobs.exporting.trial import OFF_GRID, ON_GRID, Trial
from sea_peft.jobs.predictor import Predictor

TARGETS = ("bundle", "nnunet", "onnx", "peft", "torch")
_NEEDS = {
    "bundle": ("ignite", "fire"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "peft": ("peft",),
}
_EXTRA = {"peft": "peers"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported network.

    Attributes:
        folder: where it was written.
        to: the target tool.
        network: "adapted" or "unadapted".
        labels: label names.
        agreement: share of the trial scan's voxels in which the receiving tool's mask equals that
            of `predict`.
        files: names of the files in `folder`.
    """

    folder: Path
    to: str
    network: str
    labels: tuple[str, ...]
    agreement: float
    files: tuple[str, ...]


def export(
    adapter: Path,
    to: str,
    out: Path,
    *,
    typed: Typed = NOTHING,
    use: str | None = None,
    source: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Exported:
    """Write the network of an adapter for another tool.

    Args:
        adapter: an adapter folder or a run folder.
        to: one of `TARGETS`.
        out: the folder to make.
        typed: the backbone or its weights, if they are not installed under the name in the adapter.
        use: "adapted" or "unadapted"; None for the network that the adapter's run recommends.
        source: the checkpoint that an nnU-Net's weights were imported from.
        say: receives sentences for the user: which network is used and why.

    Raises:
        UsageError: the target is unknown or its tool not installed, `out` exists, or the tool
            cannot run this network.
        WeightsError: the adapter is refused, or the receiving tool does not give the same masks.
            Nothing is written then.
        DiskError: `out` cannot be written.
    """
    if to not in TARGETS:
        raise UsageError(f"--to {to} is not known; there are {', '.join(TARGETS)}.")
    if out.exists():
        raise UsageError(f"{out} exists already; choose another --out.")
    lacking = [name for name in _NEEDS.get(to, ()) if importlib.util.find_spec(name) is None]
    if lacking:
        raise UsageError(
            f"--to {to} needs {', '.join(lacking)}, which is not installed; `pip install"
            f" 'sea_peft[{_EXTRA.get(to, 'export')}]'`."
        )
    predictor = Predictor(adapter, typed, "cpu", use, "export")
    linear = predictor.recipe.resampler == "linear"
    if to == "peft":
        from sea_peft.jobs.exporting import peft

        peft.require_lora(predictor)
    elif to != "nnunet" and not linear:
        raise UsageError(
            "This network sees scans as nnU-Net's own preprocessor makes them, which goes along"
            " with nnU-Net alone; export --to nnunet."
        )
    if say is not None:
        say(predictor.choice())
    with contextlib.ExitStack() as open_folders:
        building = open_folders.enter_context(atomic.new_folder(out))
        work = Path(
            open_folders.enter_context(tempfile.TemporaryDirectory(prefix="seapeft-export-"))
        )
        (work / "trial").mkdir()
        trial = Trial.of(
            predictor, work / "trial", ON_GRID if to == "nnunet" and linear else OFF_GRID
        )
        with atomic.writing(out):
            agreement = _write(to, predictor, building, trial, source, typed, say)
            for left in building.rglob("__pycache__"):
                shutil.rmtree(left)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return Exported(
        folder=out,
        to=to,
        network=predictor.network,
        labels=tuple(predictor.labels),
        agreement=agreement,
        files=tuple(files),
    )


def _write(
    to: str,
    predictor: Predictor,
    folder: Path,
    trial: Trial,
    source: Path | None,
    typed: Typed,
    say: Callable[[str], None] | None,
) -> float:
    if to == "nnunet":
        from sea_peft.jobs.exporting import nnunet

        return nnunet.write(predictor, folder, trial, source, say)
    if to == "bundle":
        from sea_peft.jobs.exporting import bundle

        return bundle.write(predictor, folder, trial)
    if to == "onnx":
        from sea_peft.jobs.exporting import onnx

        return onnx.write(predictor, folder, trial)
    if to == "peft":
        from sea_peft.jobs.exporting import peft

        return peft.write(predictor, folder, trial, typed)
    from sea_peft.jobs.exporting import program

    return program.write(predictor, folder, trial)
