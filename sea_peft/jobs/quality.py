"""`predict --qc`: how far a mask can be trusted, and how its scan differs from the shots that the
adapter was made from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sea_peft.artefacts.quality import QUANTILES, Network, Quality, SeenChannel, SeenLabel, Trust
from sea_peft.data.planes import Planes
from sea_peft.data.prepare import Scan

_LOOKED_AT = 64  # planes of a scan from which its roughness is measured
_MOST_VALUES = 2_000_000  # of a channel, for its quantiles
_PLANE_VALUES = 1 << 25  # processed at once
# flags; chosen on four development targets, and measured by `python -m benchmarks quality` on
# others
_GREY = 0.15  # of the width of the grey values: how far a quantile may lie outside of the shots'
_ROUGHNESS = (0.6, 1.5)  # of the shots' lowest and highest
_CONFIDENCE = 0.06  # how far its mean may lie below that on held-out scans
_FARTHEST, _LEAST_DEVIATION_MM = 3.5, 10.0
_LARGEST, _LEAST_LOG_VOLUME = 4.0, 1.0
# as if one more shot had deviated by this much: five shots say little about a deviation
_USUAL_LOG_VOLUME, _USUAL_POSITION_MM = 0.3, 10.0


@dataclasses.dataclass(frozen=True)
class Look:
    """Measurements of one scan and its mask. Labels that the mask lacks are left out.

    Attributes:
        quantiles: of grey values, by channel.
        roughness: by channel.
        volumes: label → ml.
        centres: label → mm along the recipe's axes.
    """

    quantiles: tuple[tuple[float, ...], ...]
    roughness: tuple[float, ...]
    volumes: Mapping[str, float]
    centres: Mapping[str, np.ndarray]

    @classmethod
    def at(
        cls,
        image: torch.Tensor,
        mask: Callable[[int, int], np.ndarray],
        labels: Sequence[str],
        spacing: Sequence[float],
    ) -> Look:
        """Measure a scan and its mask.

        Args:
            image: `[C, D, H, W]`, after the recipe.
            mask: first and last plane → label indices `[d, H, W]` of the planes between.
            labels: the names of indices 1..L.
            spacing: of the voxels `[D, H, W]`, in mm.
        """
        depth, height, width = image.shape[1:]
        counts, sums = np.zeros(len(labels) + 1), np.zeros((len(labels) + 1, 3))
        step = max(1, _PLANE_VALUES // (height * width * (len(labels) + 1)))
        for start in range(0, depth, step):
            part = mask(start, min(depth, start + step))
            for index in np.unique(part[part > 0]).tolist():
                at = np.nonzero(part == index)
                counts[index] += len(at[0])
                sums[index] += [at[0].sum() + start * len(at[0]), at[1].sum(), at[2].sum()]
        millilitres = math.prod(spacing) / 1000
        held = {label: index for index, label in enumerate(labels, start=1) if counts[index]}
        return cls(
            tuple(_quantiles(channel) for channel in image),
            tuple(_roughness(channel) for channel in image),
            {label: float(counts[index]) * millilitres for label, index in held.items()},
            {
                label: sums[index] / counts[index] * np.asarray(spacing)
                for label, index in held.items()
            },
        )

    def positions(self) -> dict[str, np.ndarray]:
        """Label → its centre minus the mean centre of all labels in the mask."""
        if not self.centres:
            return {}
        middle = np.mean(list(self.centres.values()), axis=0)
        return {label: centre - middle for label, centre in self.centres.items()}


def look_at_shot(scan: Scan, labels: Sequence[str], spacing: Sequence[float]) -> Look:
    """Measure a labelled scan and its reference mask."""
    drawn = scan.label
    assert drawn is not None, "shots are labelled"
    return Look.at(scan.image, lambda a, b: drawn[a:b].numpy(), labels, spacing)


def look_at_prediction(
    scan: Scan, output: Planes, labels: Sequence[str], spacing: Sequence[float]
) -> Look:
    """Measure a scan and the network's mask of it. `output`: probabilities `[1 + L, D, H, W]`."""
    return Look.at(
        scan.image, lambda a, b: output.read(a, b).argmax(dim=0).numpy(), labels, spacing
    )


def quality(
    shots: Sequence[Look],
    labels: Sequence[str],
    confidence: Mapping[Network, Mapping[str, Mapping[str, float]]],
    dice: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> Quality:
    """Summarise what a run saw, to judge later masks by.

    Args:
        shots: every shot.
        labels: all labels, some of which no shot may hold.
        confidence: network → held-out scan → label → confidence, without empty masks.
        dice: arm → held-out scan → label → Dice.
    """
    return Quality(
        labels={label: seen for label in labels if (seen := _seen(label, shots)) is not None},
        channels=[
            SeenChannel(
                quantiles=tuple(
                    (min(q), max(q))
                    for q in zip(*(look.quantiles[c] for look in shots), strict=True)
                ),
                roughness=(
                    min(look.roughness[c] for look in shots),
                    max(look.roughness[c] for look in shots),
                ),
            )
            for c in range(len(shots[0].quantiles))
        ],
        held_out={
            network: [
                {
                    label: Trust(confidence=sure.get(label, 0.0), dice=of)
                    for label, of in dice[network].get(case, {}).items()
                }
                for case, sure in scans.items()
            ]
            for network, scans in confidence.items()
            if network in dice
        },
    )


@dataclasses.dataclass(frozen=True)
class Judged:
    """The judgement of `--qc` on one case.

    Attributes:
        expected: label → expected Dice and its 95% interval; labels that the mask lacks are left
            out.
        flags: reasons to check the mask before it is used, each a sentence.
    """

    expected: Mapping[str, tuple[float, float, float]]
    flags: tuple[str, ...]

    @property
    def mean(self) -> float:
        """Mean of the expected Dice over labels; 0 for an empty mask."""
        return (
            float(np.mean([dice for dice, _, _ in self.expected.values()]))
            if self.expected
            else 0.0
        )

    def as_json(self) -> dict[str, object]:
        """For the sidecar."""
        return {
            "expected_dice": {
                label: [round(v, 4) for v in of] for label, of in self.expected.items()
            },
            "flags": list(self.flags),
        }

    @classmethod
    def from_json(cls, found: Any) -> Judged | None:
        """From a sidecar; None if it does not hold the result of `as_json`."""
        try:
            expected = {
                str(label): (float(a), float(b), float(c))
                for label, (a, b, c) in found["expected_dice"].items()
            }
            return cls(expected, tuple(str(flag) for flag in found["flags"]))
        except (TypeError, KeyError, ValueError, AttributeError):
            return None


def judge(
    known: Quality,
    network: Network,
    look: Look,
    confidence: Mapping[str, float | None],
    channels: Sequence[str],
) -> Judged:
    """Compare a prediction with what the run saw.

    Args:
        known: of the adapter.
        network: the one that made the mask.
        look: at the scan and its mask.
        confidence: label → `inference.confidences`; None if the mask lacks it.
        channels: their names.
    """
    sure = {label: value for label, value in confidence.items() if value is not None}
    flags = [
        *_of_grey_values(known, look, channels),
        *_of_confidence(known, network, confidence),
        *_of_positions(known, look),
        *_of_volumes(known, look),
    ]
    return Judged(
        {label: known.expected_dice(network, label, value) for label, value in sure.items()},
        tuple(flags),
    )


def _quantiles(channel: torch.Tensor) -> tuple[float, ...]:
    values = channel.reshape(-1)
    few = values[:: max(1, len(values) // _MOST_VALUES)].numpy()
    return tuple(round(float(value), 4) for value in np.percentile(few, QUANTILES))


def _roughness(channel: torch.Tensor) -> float:
    """Mean difference of neighbours within planes, in standard deviations."""
    planes = channel[:: max(1, len(channel) // _LOOKED_AT)].double()
    deviation = float(planes.std())
    differences = [
        float(planes.diff(dim=axis).abs().mean()) for axis in (1, 2) if planes.shape[axis] > 1
    ]
    return round(sum(differences) / deviation, 4) if deviation > 0 else 0.0


def _seen(label: str, shots: Sequence[Look]) -> SeenLabel | None:
    volumes = [math.log(look.volumes[label]) for look in shots if label in look.volumes]
    if not volumes:
        return None
    positions = np.stack([look.positions()[label] for look in shots if label in look.volumes])
    z, y, x = (round(mean, 2) for mean in positions.mean(axis=0).tolist())
    dz, dy, dx = (_deviation(positions[:, axis], _USUAL_POSITION_MM) for axis in range(3))
    return SeenLabel(
        shots=len(volumes),
        log_volume=round(float(np.mean(volumes)), 4),
        log_volume_deviation=_deviation(np.array(volumes), _USUAL_LOG_VOLUME),
        position=(z, y, x),
        position_deviation=(dz, dy, dx),
    )


def _deviation(values: np.ndarray, usual: float) -> float:
    squares = float(((values - values.mean()) ** 2).sum())
    return round(math.sqrt((squares + usual**2) / len(values)), 4)


def _of_grey_values(known: Quality, look: Look, channels: Sequence[str]) -> list[str]:
    flags = []
    for name, seen, quantiles, rough in zip(
        channels, known.channels, look.quantiles, look.roughness, strict=True
    ):
        width = max(seen.quantiles[-1][1] - seen.quantiles[0][0], 1e-6)
        beyond = (
            max(
                max(low - q, q - high)
                for q, (low, high) in zip(quantiles, seen.quantiles, strict=True)
            )
            / width
        )
        if beyond > _GREY:
            flags.append(
                f"Grey values of {name} are unlike the shots' ({beyond:.0%} of their range"
                " outside)."
            )
        low, high = seen.roughness[0] * _ROUGHNESS[0], seen.roughness[1] * _ROUGHNESS[1]
        if not low <= rough <= high:
            flags.append(f"{name} is {'noisier' if rough > high else 'smoother'} than any shot.")
    return flags


def _of_confidence(
    known: Quality, network: Network, confidence: Mapping[str, float | None]
) -> list[str]:
    usual = known.usual_confidence(network)
    wanted = [label for label in confidence if label in known.labels]
    mean = sum(confidence[label] or 0.0 for label in wanted) / len(wanted) if wanted else 0.0
    if usual is None or mean >= usual - _CONFIDENCE:
        return []
    return [
        f"The network is less sure than on scans that were held out ({mean:.2f} against"
        f" {usual:.2f})."
    ]


def _of_positions(known: Quality, look: Look) -> list[str]:
    far = []
    for label, at in look.positions().items():
        if (seen := known.labels.get(label)) is not None and len(look.centres) > 1:
            apart = np.abs(at - seen.position) / (
                _LEAST_DEVIATION_MM + np.array(seen.position_deviation)
            )
            if float(apart.max()) > _FARTHEST:
                far.append(label)
    return (
        [f"Not where the shots have it, among the other labels: {', '.join(far)}."] if far else []
    )


def _of_volumes(known: Quality, look: Look) -> list[str]:
    flags = []
    shots = max((seen.shots for seen in known.labels.values()), default=0)
    if missing := [
        n for n, seen in known.labels.items() if n not in look.volumes and seen.shots == shots
    ]:
        flags.append(f"In every shot, and not in the mask: {', '.join(missing)}.")
    odd = []
    for label, volume in look.volumes.items():
        if (seen := known.labels.get(label)) is not None:
            apart = abs(math.log(volume) - seen.log_volume)
            if apart > _LARGEST * seen.log_volume_deviation + _LEAST_LOG_VOLUME:
                odd.append(
                    f"{label} ({volume:.3g} ml, shots about {math.exp(seen.log_volume):.3g})"
                )
    return [*flags, *([f"Of unusual volume: {', '.join(odd)}."] if odd else [])]
