"""An adapter on its backbone that turns cases into label maps, for predict, evaluate and the
report's overlays.
"""

from __future__ import annotations

import hashlib
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sea_peft.artefacts.adapter_file import MODEL_NAME
from sea_peft.artefacts.quality import Quality
from sea_peft.backbones.batching import batch_for_masks
from sea_peft.backbones.typed import NOTHING, Typed
from sea_peft.data.cases import Case
from sea_peft.data.planes import Planes
from sea_peft.data.prepare import Scan, prepare, restore
from sea_peft.data.progress import Progress, unwatched
from sea_peft.errors import SeaPeftError, UsageError
from sea_peft.jobs.inference import probabilities
from sea_peft.jobs.keeping import Keep, keeps
from sea_peft.jobs.memory import Activations, Need, inference_need
from sea_peft.jobs.model import NETWORKS, Backbone, adapter_folder, open_adapter, resolve_device

if TYPE_CHECKING:
    from sea_peft.jobs.ensemble import Disagreement

_LOG = logging.getLogger(__name__)


class Predictor:
    """Predicts case after case with one adapter.

    Args:
        adapter: an adapter folder or a run folder.
        typed: the backbone or its weights, if they are not installed under the name in the adapter.
        device: as on the command line.
        use: "adapted", "unadapted" or "both" (`open_adapter`); None for the network that the
            adapter's run recommends.
        verb: of the command line, for the command to type if weights are missing.
        opened: backbones that are open, to be shared.

    Attributes:
        network: the one that predicts.
        loaded: the adapter on its backbone.
        sha256: of the file with the adapter's tensors.

    Raises:
        WeightsError: the adapter or the weights are refused.
        DeviceError: the device is not there.
        UsageError: the device makes no sense.
    """

    def __init__(
        self,
        adapter: Path,
        typed: Typed = NOTHING,
        device: str = "auto",
        use: str | None = None,
        verb: str = "predict",
        opened: Sequence[Backbone] = (),
    ) -> None:
        self.device = resolve_device(device)
        folder = adapter_folder(adapter)
        loaded = open_adapter(
            folder, typed, use, f"seapeft {verb} {shlex.quote(str(adapter))} …", opened
        )
        self.loaded, self.model, self.config = loaded, loaded.model, loaded.config
        self.sha256 = hashlib.sha256((folder / MODEL_NAME).read_bytes()).hexdigest()
        self.network = loaded.network
        self.model.to(self.device)
        for unit in self.model.bank.built:
            self.model.bank[unit].to(self.device)
        self.model.bank.hold()
        self.labels = {name: tuple(codes) for name, codes in self.config.labels.items()}
        self.channels = tuple(self.config.channels)
        self.recipe = self.config.recipe
        self._batch = batch_for_masks(self.model.backbone)

    def prepared(self, case: Case, channels: tuple[str, ...] | None = None) -> Scan:
        """The case after the recipe. `channels`: its names for the adapter's channels, in the
        adapter's order.
        """
        return prepare(case, self.recipe, channels or self.channels)

    def probabilities(
        self, scan: Scan, folder: Path | None = None, progress: Progress = unwatched
    ) -> Planes:
        """Probabilities `[1 + labels, D, H, W]` on the recipe's grid, background first.

        `folder`: for temporary files of outputs that do not fit into memory. `progress`: called
        with (windows done, of).
        """
        (output,) = probabilities(
            self.model, scan, self.config.window, self.device, self._batch, folder, progress
        )
        return output

    def with_disagreement(
        self, scan: Scan, folder: Path | None = None, progress: Progress = unwatched
    ) -> tuple[Planes, Disagreement | None]:
        """As `probabilities`, and where adapters disagree if there are several."""
        return self.probabilities(scan, folder, progress), None

    def choice(self, network: str | None = None) -> str:
        """Which network is used and why, in a sentence for the user. `network`: if it is not this
        predictor's own.
        """
        network, recommended = network or self.network, self.config.recommended
        if network == "both":
            added = ", ".join(list(self.labels)[index - 1] for index in self.model.head.added)
            return (
                f"Using both networks, as asked: {added} by the adapted one, everything else by the"
                " unadapted one."
            )
        if network == recommended.network:
            head = self.model.head
            way = f"; --use {next(name for name in NETWORKS if name != network)} overrides."
            if head.added:  # the unadapted network has no mask of them
                known = "; --use both takes the labels known before from the unadapted one."
                way = known if head.knows_a_label else "."
            return (
                f"Using the {network} network, as the run recommends ({recommended.evidence}){way}"
            )
        return (
            f"Using the {network} network, as asked; the run recommends the {recommended.network}"
            f" one ({recommended.evidence})."
        )

    def keeping(self, asked: Sequence[str]) -> dict[str, Keep]:
        """Label → which connected parts of its masks are kept, for those of which not all are: as
        asked, else as the run has chosen for its adapter. Raises UsageError for what makes no sense
        (`keeping.keeps`).
        """
        own = self.kept_by_default if self.network != "unadapted" else {}
        return keeps(
            asked or [f"{label}={rule}" for label, rule in own.items()], tuple(self.labels)
        )

    @property
    def kept_by_default(self) -> Mapping[str, str]:
        """Label → the rule that the run has chosen for the adapter's masks."""
        return self.config.keep

    def seen(self, way_out: str) -> Quality:
        """What the adapter's run saw. Raises UsageError if the adapter does not say it; `way_out`:
        what else the user can do then.
        """
        if self.config.quality is None:
            raise UsageError(
                "This adapter was made before `--qc`, so it does not say what its run saw; adapt"
                f" again{way_out}."
            )
        return self.config.quality

    def estimate(self, cases: Sequence[Case], ahead: Sequence[Case] = ()) -> Need:
        """The memory and disk that predicting the largest of the cases will take. `ahead`: as for
        `inference_need`.
        """
        return self._estimate(cases, ahead, networks=1)

    def _estimate(self, cases: Sequence[Case], ahead: Sequence[Case], networks: int) -> Need:
        # of a small input: its bytes per voxel are about those of a patch, which would take as long
        # as predicting a window
        smallest = torch.zeros(1, len(self.channels), *self.loaded.backbone.pretrained.limits.small)
        activations = Activations.of(self.model, smallest.to(self.device))
        # of all networks together one output is kept, and the sums of the windows at the moment are
        # of each
        outputs = (1 + networks) * (1 + len(self.labels)) // 2
        patch = self.config.window.patch
        return inference_need(
            cases, self.recipe, len(self.channels), outputs, patch, activations, ahead
        )

    def label_map(
        self, case: Case, channels: tuple[str, ...] | None = None, progress: Progress = unwatched
    ) -> np.ndarray:
        """Label indices uint8 [I, J, K] on the case's own grid, 1..L in the order of the labels."""
        scan = self.prepared(case, channels)
        return restore(self.probabilities(scan, progress=progress), scan.geometry)


def reason(error: Exception) -> str:
    """Why one case failed, in a sentence, even for unforeseen errors, which must not stop the
    other cases.
    """
    if isinstance(error, SeaPeftError):
        return str(error)
    _LOG.info("unexpected", exc_info=error)
    if isinstance(error, MemoryError):
        return "memory ran out; predict on a machine with more."
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]
