"""How a network expects a scan to be oriented and scaled: tries every orientation with a few
scalings of grey values on a scan with its mask.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sea_peft.backbones.batching import batch_for_masks
from sea_peft.backbones.limits import Size
from sea_peft.backbones.weights import Pretrained
from sea_peft.data.cases import FileCase
from sea_peft.data.intensity import foreground, looks_like_hounsfield, scaling
from sea_peft.data.prepare import prepare
from sea_peft.data.progress import Progress, unwatched
from sea_peft.data.recipe import Intensity, Percentile, Recipe, Window, ZScore
from sea_peft.data.sliding import SlidingWindow
from sea_peft.errors import DataError
from sea_peft.jobs import expected
from sea_peft.jobs.windows import blended

_SIDES = (1 / 3, 1 / 2, 3 / 4)  # of the patch: the crops of successive looks
_KEPT = (16, 6)  # readings that are tried again, in the second look and in the third
_UNTIL = (0.4, 0.5, 0.6)  # shares of the time after which each look ends
_VERIFIED = 3
_OVERLAP = 0.1  # a whole scan is only scored here
_ORDERS = ("RAS", "RSA", "ARS", "ASR", "SRA", "SAR")
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class Wanted:
    """A mask to compare with.

    Attributes:
        indices: `[I, J, K]`, 0 for the background, else 1 + index of the entry.
        entries: each label's codes in the mask.
        rows: the network's output row for each entry; None to match them by overlap.
    """

    indices: np.ndarray
    entries: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...] | None

    def score(self, table: np.ndarray) -> tuple[float, dict[int, int]]:
        """Mean Dice over the entries, and the output row of each. An entry for which no class
        is left counts 0.
        """
        dice = dice_table(table)
        rows = self.rows
        if rows is None:
            at, best = linear_sum_assignment(-dice)
            taken = {int(entry): int(row) + 1 for entry, row in zip(at, best, strict=True)}
        else:
            taken = dict(enumerate(rows))
        return float(sum(dice[entry, row - 1] for entry, row in taken.items()) / len(dice)), taken


@dataclasses.dataclass(frozen=True)
class Reading:
    """A way to prepare a scan for the network, in the words of `backbones import`. `dice`: mean
    over the mask's labels on the whole scan.
    """

    orientation: str
    intensity: str
    dice: float


@dataclasses.dataclass(frozen=True)
class Scaling:
    """A scaling in the words of `--intensity`. The network sees factor·scaled + offset."""

    words: str
    intensity: Intensity
    factor: float
    offset: float

    @classmethod
    def of(cls, intensity: Intensity, settings: Mapping[str, Any]) -> Scaling:
        """From a recipe's intensity and the network's settings."""
        factor, offset = settings.get("input_factor", 1.0), settings.get("input_offset", 0.0)
        return cls(expected.in_words(intensity, settings), intensity, factor, offset)


@dataclasses.dataclass(frozen=True)
class _Look:
    """The Dice of a reading on a crop."""

    orientation: str
    scaling: Scaling
    dice: float


def confusion(found: np.ndarray, wanted: np.ndarray, rows: int, entries: int) -> np.ndarray:
    """Voxel counts `[1 + entries, rows]`, by the mask's entry and the network's class."""
    joint = wanted.astype(np.int64).ravel() * rows + found.astype(np.int64).ravel()
    return np.bincount(joint, minlength=(1 + entries) * rows).reshape(1 + entries, rows)


def dice_table(table: np.ndarray) -> np.ndarray:
    """Dice `[entries, rows - 1]` of each label of the mask with each class but the background."""
    total = table[1:].sum(1, keepdims=True) + table[:, 1:].sum(0, keepdims=True)
    return 2.0 * table[1:, 1:] / np.maximum(total, 1)


class Search:
    """Searches for the reading that fits a mask best, within a time.

    First it tries orientations and scalings on a small crop around the middle of the mask: for each
    scaling two opposite orientations of every order of axes, then the rest, beginning with the best
    scaling. It then tries the best of these on larger crops, and at last on the whole scan, as far
    as time allows.

    Args:
        pretrained: the network, on `device`.
        case: the scan.
        wanted: its mask.
        device: where the network is.
        seconds: for the whole search. When they are over, the rest is skipped, except for the best
            reading on the whole scan.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        case: FileCase,
        wanted: Wanted,
        device: torch.device,
        seconds: float,
    ) -> None:
        self._pretrained, self._wanted, self._device = pretrained, wanted, device
        card = pretrained.card
        self._own = Scaling.of(Recipe.model_validate(card.recipe).intensity, card.kwargs)
        self._scalings = self._choices([case.image(channel).array for channel in card.channels])
        self._case, self._began, self._seconds = case, time.monotonic(), seconds
        self._views: dict[str, tuple[Tensor, Tensor]] = {}
        self.ways, self.looked_at = len(_ORDERS) * 8 * len(self._scalings), 0

    def best(self, progress: Progress = unwatched) -> list[Reading]:
        """Readings with their Dice on the whole scan, the best first; at least one."""
        progress(0, self.ways)
        first, *larger = self._crops()
        found = self._first_look(first, progress)
        self.looked_at = len(found)
        for crop, kept, until in zip(larger, _KEPT, _UNTIL[1:], strict=False):
            again: list[_Look] = []
            for look in found[:kept]:
                if len(again) > 1 and self._passed(until):
                    break
                again.append(self._look(look.orientation, look.scaling, crop))
            found = sorted(again, key=lambda look: -look.dice)
        verified: list[Reading] = []
        for look in found[:_VERIFIED]:
            began = time.monotonic()
            dice = self._on_scan(*_order_of(look.orientation), look.scaling)
            verified.append(Reading(look.orientation, look.scaling.words, dice))
            if self._passed(1.0, time.monotonic() - began):
                break
        return sorted(verified, key=lambda reading: -reading.dice)

    def _first_look(self, crop: Size, progress: Progress) -> list[_Look]:
        """Every orientation with every scaling, as far as time allows, the best first."""
        opposite = [
            codes for order in _ORDERS for codes, turned in _turns(order) if len(turned) in (0, 3)
        ]
        others = [
            codes for order in _ORDERS for codes, turned in _turns(order) if len(turned) in (1, 2)
        ]
        found: list[_Look] = []

        def look_at(orientations: Sequence[str], choice: Scaling) -> float:
            """The best Dice of these, 0 where there is no time for any."""
            best = 0.0
            for orientation in orientations:
                if found and self._passed(_UNTIL[0]):
                    break
                found.append(self._look(orientation, choice, crop))
                best = max(best, found[-1].dice)
                progress(len(found), self.ways)
            return best

        reached = [(look_at(opposite, choice), choice) for choice in self._scalings]
        for _, choice in sorted(reached, key=lambda pair: -pair[0]):
            look_at(others, choice)
        return sorted(found, key=lambda look: -look.dice)

    def _look(self, orientation: str, choice: Scaling, crop: Size) -> _Look:
        return _Look(orientation, choice, self._on_crop(*_order_of(orientation), choice, crop))

    def _passed(self, share: float, more: float = 0.0) -> bool:
        """Whether this share of the time is over, or would be after `more` seconds."""
        return time.monotonic() + more - self._began > share * self._seconds

    def _choices(self, images: Sequence[np.ndarray]) -> list[Scaling]:
        """The card's own scaling, and those of published networks for such scans."""
        choices: list[expected.Scaling] = [ZScore(), Percentile()]
        if all(looks_like_hounsfield(image) for image in images):
            choices = [expected.Unscaled(), Window(low=-175, high=250), *choices]
        else:
            choices.append(Percentile(low=0, high=100))
        made = [Scaling.of(*expected.scaling(choice, ("CT",))) for choice in choices]
        return list({choice.words: choice for choice in [self._own, *made]}.values())

    def _view(self, order: str) -> tuple[Tensor, Tensor]:
        """The scan with its axes in this order: unscaled grey values `[C, D, H, W]`, and the mask's
        indices `[D, H, W]`.
        """
        if order not in self._views:
            images = [self._case.image(channel).array for channel in self._pretrained.card.channels]
            low, high = (
                min(float(i.min()) for i in images) - 1.0,
                max(float(i.max()) for i in images),
            )
            plain = {
                "orientation": order,
                "intensity": Window(low=low, high=high),
                "crop_foreground": False,
            }
            recipe = Recipe.model_validate(self._pretrained.card.recipe).model_copy(update=plain)
            scan = prepare(self._case, recipe, self._pretrained.card.channels)
            wanted = scan.geometry.labels_to_grid(self._wanted.indices, len(self._wanted.entries))
            self._views[order] = (scan.image * (high - low) + low, wanted)
        return self._views[order]

    def _scaled(self, image: Tensor, choice: Scaling) -> Tensor:
        """Grey values `[C, D, H, W]` as the recipe would scale them, 0 outside the body."""
        channels = []
        for channel in image:
            inside = foreground(channel.numpy(), choice.intensity)
            try:
                offset, factor = scaling(channel.numpy(), inside, choice.intensity, "the crop")
            except DataError:  # a crop of a single grey value
                offset, factor = 0.0, 1.0
            values = (channel - offset) * factor
            if choice.intensity.kind != "zscore":
                values = values.clamp(0.0, 1.0)
            if choice.intensity.kind != "window":
                values = values * torch.from_numpy(inside)
            channels.append(values)
        return torch.stack(channels)

    def _fed(self, scaled: Tensor, choice: Scaling) -> Tensor:
        """The input that makes the network see factor·scaled + offset, behind any map that its card
        puts in front.
        """
        return (choice.factor * scaled + choice.offset - self._own.offset) / self._own.factor

    @torch.no_grad()
    def _on_crop(self, order: str, turned: tuple[int, ...], choice: Scaling, size: Size) -> float:
        image, wanted = self._view(order)
        box = _around(wanted, size)
        d, h, w = box
        scaled = self._scaled(image[:, d, h, w], choice)
        x = self._fed(_padded(scaled, size), choice).flip([axis + 1 for axis in turned])
        logits = self._pretrained.network(x[None].to(self._device))[0]
        found = logits.argmax(0).flip(list(turned)).cpu().numpy()
        inner = _padded(wanted[box][None].float() + 1.0, size)[
            0
        ].numpy()  # 0: padding, which is not scored
        scored = inner > 0
        table = confusion(found[scored], inner[scored] - 1, len(logits), len(self._wanted.entries))
        return self._wanted.score(table)[0]

    def _on_scan(self, order: str, turned: tuple[int, ...], choice: Scaling) -> float:
        image, wanted = self._view(order)
        patch = self._pretrained.card.patch
        shape: Size = tuple(max(n, p) for n, p in zip(wanted.shape, patch, strict=True))  # type: ignore[assignment]
        x = self._fed(_padded(self._scaled(image, choice), shape), choice).flip(
            [axis + 1 for axis in turned]
        )
        network = self._pretrained.network
        slabs = blended(
            lambda part: (network(part).softmax(dim=1),),
            x,
            SlidingWindow(patch=patch, overlap=_OVERLAP),
            self._device,
            batch_for_masks(network),
        )
        found = torch.cat([slab.argmax(0) for (slab,) in slabs]).flip(list(turned)).numpy()
        inner = _padded(wanted[None].float() + 1.0, shape)[0].numpy()
        scored = inner > 0
        table = confusion(
            found[scored],
            inner[scored] - 1,
            len(self._pretrained.card.labels),
            len(self._wanted.entries),
        )
        return self._wanted.score(table)[0]

    def _crops(self) -> list[Size]:
        """Crops from the smallest on; only the network's own size if it takes no other."""
        limits, patch = self._pretrained.limits, self._pretrained.card.patch
        sizes: list[Size] = []
        for share in _SIDES:
            d, h, w = (math.ceil(share * n) for n in patch)
            size = limits.exact or limits.holding((d, h, w))
            if size not in sizes and limits.fits_bottom(size):
                sizes.append(size)
        return sizes or [patch]


def _turns(order: str) -> list[tuple[str, tuple[int, ...]]]:
    """The eight orientations with the axes in this order, and which of D, H, W each flips."""
    found = []
    for turned in itertools.product((False, True), repeat=3):
        codes = "".join(
            _OPPOSITE[code] if turn else code for code, turn in zip(order, turned, strict=True)
        )
        found.append((codes, tuple(axis for axis, turn in enumerate(turned) if turn)))
    return found


def _order_of(orientation: str) -> tuple[str, tuple[int, ...]]:
    """The order of axes of an orientation, and which of D, H, W it flips."""
    order = "".join(code if code in "RAS" else _OPPOSITE[code] for code in orientation)
    return order, tuple(axis for axis, code in enumerate(orientation) if code not in "RAS")


def _around(wanted: Tensor, size: Size) -> tuple[slice, slice, slice]:
    """A box of `size` around the middle of the mask, moved inward; the whole axis if it is
    shorter.
    """
    middle = torch.nonzero(wanted).double().mean(dim=0)
    spans = []
    for centre, side, n in zip(middle.tolist(), size, wanted.shape, strict=True):
        start = min(max(0, int(centre) - side // 2), max(0, n - side))
        spans.append(slice(start, min(n, start + side)))
    d, h, w = spans
    return d, h, w


def _padded(values: Tensor, size: Sequence[int]) -> Tensor:
    """Values [C, d, h, w] with 0 around them, up to `size`."""
    pads: list[int] = []
    for wanted, has in zip(reversed(size), reversed(values.shape[1:]), strict=True):
        missing = max(0, wanted - has)
        pads += [missing // 2, missing - missing // 2]
    return torch.nn.functional.pad(values, pads)
