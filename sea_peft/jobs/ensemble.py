"""Several adapters on each scan: their probabilities averaged, and where they disagree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from sea_peft.artefacts.adapter_file import read_adapter_config
from sea_peft.backbones.typed import NOTHING, Typed
from sea_peft.data.cases import Case
from sea_peft.data.planes import Planes
from sea_peft.data.prepare import Scan
from sea_peft.data.progress import Progress, unwatched
from sea_peft.errors import UsageError
from sea_peft.jobs.inference import probabilities
from sea_peft.jobs.memory import Need
from sea_peft.jobs.model import adapter_folder
from sea_peft.jobs.predictor import Predictor
from sea_peft.jobs.same_task import difference


@dataclass(frozen=True, eq=False)
class Disagreement:
    """How far several adapters disagree about one scan.

    Attributes:
        where: `[1, D, H, W]` on the recipe's grid: the total variation distance ½·Σ|p − q| of two
            adapters' probabilities of a voxel, averaged over all pairs. From 0, all say the same,
            to 1, where any two exclude what the other says.
        labels: label → 1 − the Dice of two adapters' own masks, averaged over the pairs in which
            one has the label; None if none has it. It is the Dice agreement in samples of Roy et
            al. 2019 (arXiv 1811.09800), with adapters as samples, taken from 1.
    """

    where: Planes
    labels: Mapping[str, float | None]


class Ensemble(Predictor):
    """Predicts with several adapters: the mean of their probabilities.

    Adapters of one backbone share it, and take turns: the gates of one are open at a time. Those of
    different backbones each have their own.

    Args:
        adapter: an adapter folder or a run folder. Its labels, channels, recipe and window hold for
            all.
        others: the other ones.
        typed: as for `Predictor`, for every adapter.
        device: as on the command line.
        use: "adapted", or None if every run recommends that.
        verb: as for `Predictor`.

    Attributes:
        members: every adapter, the first included.

    Raises:
        WeightsError: an adapter or its weights are refused.
        DeviceError: the device is not there.
        UsageError: adapters do not fit together, one is given twice, or one is recommended not to
            be used.
    """

    def __init__(
        self,
        adapter: Path,
        others: Sequence[Path],
        typed: Typed = NOTHING,
        device: str = "auto",
        use: str | None = None,
        verb: str = "predict",
    ) -> None:
        _require_adapted([adapter, *others], use)
        super().__init__(adapter, typed, device, use, verb)
        self.members: list[Predictor] = [self]
        for path in others:
            opened = [member.loaded.backbone for member in self.members]
            self.members.append(Predictor(path, typed, device, use, verb, opened))
        for path, member in zip(others, self.members[1:], strict=True):
            if member.sha256 in {
                before.sha256 for before in self.members[: self.members.index(member)]
            }:
                raise UsageError(
                    f"--with {path} is an adapter that is there already; give each one once."
                )
            if found := difference(self.config, member.config):
                raise UsageError(
                    f"--with {path} does not fit: {found}. Masks can be averaged only where these"
                    " agree; leave it out."
                )
        self._open = [member.model.bank.active for member in self.members]
        for member in self.members:
            member.model.bank.activate(())

    def probabilities(
        self, scan: Scan, folder: Path | None = None, progress: Progress = unwatched
    ) -> Planes:
        return self.with_disagreement(scan, folder, progress)[0]

    def with_disagreement(
        self, scan: Scan, folder: Path | None = None, progress: Progress = unwatched
    ) -> tuple[Planes, Disagreement]:
        pairs = _Pairs(len(self.members), 1 + len(self.labels))
        mean, where = probabilities(
            self._each,
            scan,
            self.config.window,
            self.device,
            self._batch,
            folder,
            progress,
            pairs.combined,
        )
        return mean, Disagreement(where, pairs.per_label(tuple(self.labels)))

    def _each(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self._in_turn(x))

    def _in_turn(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        for member, units in zip(self.members, self._open, strict=True):
            with member.model.bank.only(units):
                yield member.model(x)

    def choice(self, network: str | None = None) -> str:
        names = list(dict.fromkeys(member.config.backbone.weights for member in self.members))
        on = f"one backbone, {names[0]}" if len(names) == 1 else f"the backbones {', '.join(names)}"
        return f"Averaging the probabilities of {len(self.members)} adapters on {on}."

    @property
    def kept_by_default(self) -> Mapping[str, str]:
        """The rules that every run has chosen alike."""
        first, *others = (member.config.keep for member in self.members)
        return {
            label: rule
            for label, rule in first.items()
            if all(rule == keep.get(label) for keep in others)
        }

    def estimate(self, cases: Sequence[Case], ahead: Sequence[Case] = ()) -> Need:
        return self._estimate(cases, ahead, networks=len(self.members))


def predictor_of(
    adapter: Path,
    others: Sequence[Path],
    typed: Typed,
    device: str,
    use: str | None,
    verb: str = "predict",
) -> Predictor:
    """The adapter alone, or averaged with the others if there are any. Raises as these two do."""
    if others:
        return Ensemble(adapter, others, typed, device, use, verb)
    return Predictor(adapter, typed, device, use, verb)


class _Pairs:
    """Combines the probabilities of several networks, slab after slab, and counts in how many
    voxels every two of them have the same label.

    `networks`: how many. `classes`: background included.
    """

    def __init__(self, networks: int, classes: int) -> None:
        self._pairs = list(combinations(range(networks), 2))
        self._sizes = np.zeros((networks, classes))
        self._shared = np.zeros((len(self._pairs), classes))

    def combined(self, slabs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities `[K, n, H, W]` of each network → their mean, and `Disagreement.where`."""
        classes = self._sizes.shape[1]
        winners = [slab.argmax(dim=0).ravel() for slab in slabs]
        for sizes, winner in zip(self._sizes, winners, strict=True):
            sizes += torch.bincount(winner, minlength=classes).numpy()
        apart = torch.zeros_like(slabs[0][:1])
        for shared, (a, b) in zip(self._shared, self._pairs, strict=True):
            shared += torch.bincount(
                winners[a][winners[a] == winners[b]], minlength=classes
            ).numpy()
            apart += (slabs[a] - slabs[b]).abs().sum(dim=0, keepdim=True)
        return torch.stack(tuple(slabs)).mean(dim=0), apart.div_(2 * len(self._pairs)).clamp_(max=1)

    def per_label(self, labels: Sequence[str]) -> dict[str, float | None]:
        """`Disagreement.labels` for all slabs so far."""
        found: dict[str, float | None] = {}
        for index, label in enumerate(labels, start=1):
            both = [self._sizes[a, index] + self._sizes[b, index] for a, b in self._pairs]
            dice = [
                2 * shared[index] / size
                for shared, size in zip(self._shared, both, strict=True)
                if size
            ]
            found[label] = round(1 - float(np.mean(dice)), 4) if dice else None
        return found


def _require_adapted(paths: Sequence[Path], use: str | None) -> None:
    """Raise UsageError if one of the networks would be the unadapted one."""
    if use == "unadapted":
        raise UsageError(
            "--with averages adapters, so there is none to leave out; give --use unadapted without"
            " --with."
        )
    for path in paths if use is None else ():
        recommended = read_adapter_config(adapter_folder(path)).recommended
        if recommended.network != "adapted":
            raise UsageError(
                f"The run of {path} recommends the unadapted network ({recommended.evidence}),"
                " which is no adapter to average; leave it out, or have all adapters used with"
                " --use adapted."
            )
