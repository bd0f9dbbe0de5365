"""`seapeft doctor`: checks whether this machine and this installation are fit for a run. Everything
is tried, not only looked up.
"""

import dataclasses
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from sea_peft import __version__
from sea_peft.artefacts import store
from sea_peft.backbones.weights import cards, load_pretrained
from sea_peft.data.dicom.files import INSTALL
from sea_peft.data.wording import count
from sea_peft.errors import DeviceError, SeaPeftError, WeightsError

_PACKAGES = (
    "torch",
    "monai",
    "numpy",
    "scipy",
    "nibabel",
    "SimpleITK",
    "safetensors",
    "pydantic",
    "mlflow",
    "rich",
    "typer",
)
_DICOM = ("pydicom", "highdicom")  # the extra `dicom`
_LEAST_MEMORY = 4 << 30
_LEAST_DISK = 2 << 30
_FOREIGN_STORE = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")


@dataclasses.dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what was checked.
        state: ok, warning or problem.
        found: the result, in words.
        error: the class of error that a problem is.
    """

    name: str
    state: str
    found: str
    error: type[SeaPeftError] = DeviceError


def doctor(runs: Path) -> list[Check]:
    """Check versions, devices, memory, disk, the MLflow store of the runs root, telemetry,
    network and weights.
    """
    checks = (_versions, _devices, _memory, _disk, _store, _privacy, _network, _weights)
    return [found for check in checks for found in check(runs)]


def _versions(runs: Path) -> Iterator[Check]:
    yield Check("sea_peft", "ok", __version__)
    yield Check(
        "Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    for name in (*_PACKAGES, *_DICOM):
        try:
            yield Check(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            if name in _DICOM:
                yield Check(name, "ok", f"not installed, only needed for DICOM: {INSTALL}")
            elif name == "mlflow":
                yield Check(
                    name, "warning", "not installed; masks need none, adapt needs --no-mlflow"
                )
            else:
                yield Check(name, "problem", "not installed; run `pip install sea_peft` again")


def _devices(runs: Path) -> Iterator[Check]:
    yield Check(
        "CPU", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    )
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Check(
            f"cuda:{index}", "ok", f"{name}, {_gigabytes(free)} of {_gigabytes(total)} free"
        )
    if torch.backends.mps.is_available():
        yield Check("mps", "ok", "Metal device")
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        yield Check("GPU", "ok", "none; everything runs on the CPU")


def _memory(runs: Path) -> Iterator[Check]:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")  # what a container may use of it
    text = limit.read_text().strip() if limit.is_file() else "max"
    usable = min(total, int(text)) if text.isdigit() else total
    few, said = usable < _LEAST_MEMORY, f" of {_gigabytes(total)}" if usable < total else ""
    said = f"; the default run needs up to {_gigabytes(_LEAST_MEMORY)}" if few else said
    yield Check("memory", "warning" if few else "ok", _gigabytes(usable) + said)


def _disk(runs: Path) -> Iterator[Check]:
    there = next(folder for folder in (runs.resolve(), *runs.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        yield Check(
            "disk", "problem", f"{there} is not writable; choose another folder with --runs"
        )
    elif free < _LEAST_DISK:
        wanted = f"MLflow and checkpoints want {_gigabytes(_LEAST_DISK)}"
        yield Check("disk", "warning", f"{_gigabytes(free)} free in {there}; {wanted}")
    else:
        yield Check("disk", "ok", f"{_gigabytes(free)} free in {there}")


def _store(runs: Path) -> Iterator[Check]:
    if not store.installed():
        return
    path = store.store_path(runs)
    try:
        if not path.exists():
            with (
                tempfile.TemporaryDirectory() as empty
            ):  # tries the installed versions without leaving a store behind
                store.experiment_id(store.open_store(Path(empty)), Path(empty))
            yield Check("MLflow store", "ok", f"none yet in {runs}; the first run makes it")
            return
        store.check_writable(runs, seconds=2.0)
        client = store.open_store(runs)
        logged = client.search_runs([store.experiment_id(client, runs)], max_results=1000)
    except Exception as error:  # any error of MLflow or its database is a finding
        said = f"{path} does not work ({store.first_line(error)}); {store.way_out(error)}"
        yield Check("MLflow store", "problem", said)
        return
    who = _readers(path)
    yield Check("MLflow store", "ok", f"{path}, {count(len(logged), 'run')}, readable by {who}")


def _readers(path: Path) -> str:
    """Who on this machine may read a file, by its mode and those of the folders above it."""
    modes = [folder.stat().st_mode for folder in (path, *path.resolve().parents)]
    for bit, enter, who in (
        (0o004, 0o001, "everybody on this machine"),
        (0o040, 0o010, "its group"),
    ):
        if modes[0] & bit and all(mode & enter for mode in modes[1:]):
            return who
    return "you alone"


def _privacy(runs: Path) -> Iterator[Check]:
    yield Check(
        "kept in a run",
        "ok",
        "cases under hashed names, no path of the data: trace, report, adapter and MLflow. Two"
        " files that you alone can read say more: config.json (where the data are, to resume) and"
        " cases.json (what the cases are called)",
    )


def _network(runs: Path) -> Iterator[Check]:
    if not store.installed() or _silent():
        yield Check("telemetry", "ok", "off")
    else:
        yield Check("telemetry", "problem", "MLflow's is on; set MLFLOW_DISABLE_TELEMETRY=true")
    foreign = [name for name in _FOREIGN_STORE if os.environ.get(name)]
    said = (
        "nothing is fetched or sent; `seapeft ui` listens on 127.0.0.1 only, and answers whoever"
        " has the link that it prints"
    )
    yield Check(
        "network", "ok", said + (f" ({', '.join(foreign)} is set and not used)" if foreign else "")
    )


def _silent() -> bool:
    """Whether MLflow sends nothing, in the state in which every run loads it: `_store` has
    opened a store.
    """
    from mlflow.telemetry.utils import is_telemetry_disabled

    return bool(is_telemetry_disabled())


def _weights(runs: Path) -> Iterator[Check]:
    for name in sorted(cards()):
        try:
            loaded = load_pretrained(name)
        except SeaPeftError as error:
            yield Check(f"weights {name}", "problem", str(error), WeightsError)
        else:
            said = f"{loaded.parameters:,} parameters, hash {loaded.sha256[:12]}, verified"
            yield Check(f"weights {name}", "ok", said)


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
