"""What the adapter's own run saw, to judge its predictions by. Single scans cannot be told
apart in it.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from sea_peft.artefacts.record import NoPaths
from sea_peft.documents import Count, Dice, Name, Number, Record

QUANTILES = (1, 5, 25, 50, 75, 95, 99)
"""Percentiles of a channel's grey values that are kept, after the recipe."""

Position = tuple[Number, Number, Number]
Range = tuple[Number, Number]
Network = Literal["adapted", "unadapted", "both"]
"""Which network predicts. "both": added labels the adapted one, everything else the unadapted
one.
"""
_USUAL_ERROR, _WEIGHT, _LABEL_WEIGHT = 2.2, 0.5, 0.2
_LEAST, _MOST = 0.6, 1.7  # of the expected error, on 95% of the development set's masks


class SeenLabel(Record):
    """One label in the shots.

    Attributes:
        shots: number of shots that hold it.
        log_volume: mean of the natural logarithms of its volumes in ml.
        log_volume_deviation: their standard deviation.
        position: mean of its centre minus the centre of all labels, in mm along the recipe's axes.
        position_deviation: standard deviation of these.
    """

    shots: Count
    log_volume: Number
    log_volume_deviation: Number
    position: Position
    position_deviation: Position


class Trust(Record):
    """One label's mask in a held-out scan: the network's confidence in it (0 if it is empty),
    and its Dice.
    """

    confidence: Dice
    dice: Dice


class SeenChannel(Record):
    """One channel in the shots, after the recipe.

    Attributes:
        quantiles: lowest and highest of each of `QUANTILES`.
        roughness: lowest and highest mean difference of neighbours, in standard deviations of the
            scan.
    """

    quantiles: Annotated[
        tuple[Range, ...], Field(min_length=len(QUANTILES), max_length=len(QUANTILES))
    ]
    roughness: Range


class Quality(NoPaths):
    """What a run saw of its shots, and how its networks did on the scans held out while searching.

    Attributes:
        labels: by name, without labels that no shot holds.
        channels: in the order of the adapter's.
        held_out: network → one mapping per scan, label → trust; at one shot, that shot and the
            labels held out of it. A run scores no scan with "both",
            whose masks are judged as those of "adapted".
    """

    labels: dict[Name, SeenLabel]
    channels: Annotated[list[SeenChannel], Field(min_length=1, max_length=64)]
    held_out: dict[Network, Annotated[list[dict[Name, Trust]], Field(max_length=10_000)]]

    def expected_dice(
        self, network: Network, label: str, confidence: float
    ) -> tuple[float, float, float]:
        """The expected Dice of a mask, and its 95% interval.

        1 − Dice is a factor times 1 − confidence. The factor is this label's on held-out scans,
        shrunk towards that of all labels and towards 2.2, that of four development targets. The
        interval is that of their masks.
        """
        error, doubt = _USUAL_ERROR * _WEIGHT, _WEIGHT
        own_error, own_doubt = 0.0, 0.0
        for scan in self._scored(network):
            error += sum(1 - trust.dice for trust in scan.values())
            doubt += sum(1 - trust.confidence for trust in scan.values())
            if label in scan:
                own_error += 1 - scan[label].dice
                own_doubt += 1 - scan[label].confidence
        factor = (own_error + _LABEL_WEIGHT * error / doubt) / (own_doubt + _LABEL_WEIGHT)
        short = factor * (1 - confidence)
        dice, low, high = (max(0.0, 1 - short * times) for times in (1.0, _MOST, _LEAST))
        return dice, low, high

    def usual_confidence(self, network: Network) -> float | None:
        """Mean over labels and held-out scans; None if there were none."""
        scans = [scan for scan in self._scored(network) if scan]
        if not scans:
            return None
        means = [
            math.fsum(trust.confidence for trust in scan.values()) / len(scan) for scan in scans
        ]
        return math.fsum(means) / len(means)

    def _scored(self, network: Network) -> list[dict[Name, Trust]]:
        return self.held_out.get("adapted" if network == "both" else network, [])
