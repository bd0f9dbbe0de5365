"""Looks inside the network of a finished run: ProtoSeg and Grad-CAM on its best, median and
worst test case.
"""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Sequence

import nibabel.orientations as orientations
import numpy as np
import torch

from sea_peft.artefacts.adapter_file import AdapterConfig
from sea_peft.artefacts.explained import ability_figure
from sea_peft.artefacts.history import History
from sea_peft.artefacts.plots import svg
from sea_peft.artefacts.report import Picture
from sea_peft.backbones import Site
from sea_peft.data.crops import labelled_crop
from sea_peft.data.metrics import mean
from sea_peft.data.prepare import prepare
from sea_peft.data.progress import Progress, unwatched
from sea_peft.data.wording import count
from sea_peft.explain.gradcam import class_maps, otsu
from sea_peft.explain.layers import overlap
from sea_peft.explain.protoseg import segmentation_abilities
from sea_peft.jobs.pictures import Revisited, ShownCase
from sea_peft.jobs.preview import Heat, heat_png
from sea_peft.jobs.shades import scaled_shades

STATES = ("unadapted", "adapted")
_MOST_ROWS = 3
Measured = dict[str, dict[str, list[list[float]]]]  # state → site → case → Dice of every label
LayerDice = dict[str, dict[str, dict[str, float]]]  # state → site → label → Dice


@dataclasses.dataclass(frozen=True, eq=False)
class _Crop:
    """The crop of one case that is examined: image `[1, C, D, H, W]`, label `[D, H, W]`."""

    image: torch.Tensor
    label: torch.Tensor


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Explanation:
    """Means over the cases shown. NaN if no case has the label, or the network predicted no voxel
    of it.

    Attributes:
        labels: label names.
        cases: number of cases.
        ability: segmentation ability of each layer.
        attention: for the last layer of each stage, Dice of the Grad-CAM map above Otsu's threshold
            with the label.
        cams: the median case's maps as a PNG; None if it has none.
    """

    labels: tuple[str, ...]
    cases: int
    ability: LayerDice
    attention: LayerDice
    cams: bytes | None

    def document(self) -> dict[str, object]:
        """`explain.json`: the numbers, without pixels and without names of cases."""
        return {
            "cases": self.cases,
            "labels": list(self.labels),
            "segmentation_ability": _without_nan(self.ability),
            "grad_cam_dice": _without_nan(self.attention),
        }

    def pictures(self, history: History) -> list[Picture]:
        """The figures for the report."""
        means = {
            site: (
                mean(self.ability["unadapted"][site].values()),
                mean(self.ability["adapted"][site].values()),
            )
            for site in self.ability["adapted"]
        }
        over = f"mean over {count(len(self.labels), 'label')} and {count(self.cases, 'test case')}"
        made = [
            Picture(
                "ProtoSeg: how well a label could be drawn from one layer's features alone, by"
                " which of two averages (inside or outside the label) each voxel is nearer to;"
                f" {over}. Layers where the unadapted network is weak and the adapted one is not"
                " are where added capacity paid. An adapter also changes every layer after its"
                " own.",
                svg(ability_figure(history, means)),
                "image/svg+xml",
            )
        ]
        if self.cams is not None:
            made.append(
                Picture(
                    "Grad-CAM of the adapted network on the median case: where in the picture each"
                    " label's score comes from, seen from the last layer of every stage; air is"
                    " left out. Dice: the map above Otsu's threshold against the label. Early"
                    " layers see surroundings rather than organs; dots in a grid are made by the"
                    " network's own upsampling. A map that misses the label is a reason to look"
                    " closer, not a proof of a mistake.",
                    self.cams,
                )
            )
        return made


def explain(run: Revisited, progress: Progress = unwatched) -> Explanation:
    """Run ProtoSeg and Grad-CAM on one crop of each case, around its labels, with the adapters
    closed and open.

    Both states use the adapted network's output as guide, since the unadapted one may not know a
    label at all. So they differ in the features alone.
    """
    model, predictor = run.predictor.model, run.predictor
    labels, paths = tuple(predictor.labels), [site.path for site in model.sites]
    last = _last_of_stages(model.sites)
    ability: Measured = {state: collections.defaultdict(list) for state in STATES}
    attention: Measured = {state: collections.defaultdict(list) for state in STATES}
    cams = None
    for done, shown in enumerate(run.shown, start=1):
        crop = _crop(run, shown)
        with torch.no_grad():
            guide = model(crop.image).softmax(dim=1)[0, 1:]
        for state in STATES:
            with model.unadapted() if state == "unadapted" else contextlib.nullcontext():
                abilities = segmentation_abilities(model, paths, crop.image, guide, crop.label)
                maps = class_maps(model, list(last), crop.image)
            seen = {path: [_inside(m) for m in of_label] for path, of_label in maps.items()}
            for path, values in abilities.items():
                ability[state][path].append(values)
            for path, each in seen.items():
                attention[state][path].append([_dice(m, n, crop) for n, m in enumerate(each, 1)])
        if shown.role == "Median" or cams is None:
            columns = {
                path: stage for path, stage in last.items() if path in maps
            }  # a list of tokens has no map
            cams = _cam_png(shown, crop, predictor.config, labels, columns, maps, seen)
        progress(done, len(run.shown))
    by_layer, by_map = (_means(measured, labels) for measured in (ability, attention))
    return Explanation(
        labels=labels, cases=len(run.shown), ability=by_layer, attention=by_map, cams=cams
    )


def _crop(run: Revisited, shown: ShownCase) -> _Crop:
    config, device = run.predictor.config, run.predictor.device
    scan = prepare(shown.case, config.recipe, run.channels, run.predictor.labels)
    image, label = labelled_crop(scan, config.window)
    return _Crop(image[None].to(device), label.to(device))


def _last_of_stages(sites: Sequence[Site]) -> dict[str, str]:
    """Path → stage, of the last site of every stage but the stem, in execution order."""
    last = {
        site.stage: site.path
        for site in sorted(sites, key=lambda site: site.order)
        if site.stage != "stem"
    }
    return {path: stage for stage, path in last.items()}


def _inside(found: torch.Tensor | None) -> torch.Tensor | None:
    return None if found is None else found > otsu(found)


def _dice(inside: torch.Tensor | None, index: int, crop: _Crop) -> float:
    """Dice of the map's counted part with the label of this index; NaN if there is no map or no
    such label.
    """
    wanted = crop.label == index
    return float("nan") if inside is None or not wanted.any() else overlap(inside, wanted)


def _cam_png(
    shown: ShownCase,
    crop: _Crop,
    config: AdapterConfig,
    labels: Sequence[str],
    columns: dict[str, str],
    maps: dict[str, list[torch.Tensor | None]],
    seen: dict[str, list[torch.Tensor | None]],
) -> bytes | None:
    """The maps of the labels with the case's best, middle and worst Dice, with a column per stage
    that has maps (path → stage).
    """
    recipe = config.recipe
    own, wanted = (orientations.axcodes2ornt(tuple(code)) for code in (recipe.orientation, "RAS"))
    turn = orientations.ornt_transform(own, wanted)

    def upright(values: torch.Tensor) -> np.ndarray:
        return orientations.apply_orientation(values.float().cpu().numpy(), turn)

    drawn = sorted(
        (n for n in shown.dice if (crop.label == labels.index(n) + 1).any()),
        key=lambda n: -shown.dice[n],
    )
    if len(drawn) > _MOST_ROWS:
        drawn = [drawn[0], drawn[len(drawn) // 2], drawn[-1]]
    rows = []
    for name in drawn:
        index = labels.index(name)
        heats = []
        for path, stage in columns.items():
            values, inside = maps[path][index], seen[path][index]
            dice = _dice(inside, index + 1, crop)
            heats.append(
                Heat(
                    (
                        f"{stage}: no map"
                        if values is None or inside is None
                        else f"{stage}: Dice {dice:.2f}"
                    ),
                    None if values is None else upright(values),
                    None if inside is None else upright(inside) > 0.5,
                )
            )
        rows.append((name, upright(crop.label == index + 1) > 0.5, heats))
    spacing = [recipe.spacing[int(axis)] for axis in np.argsort(turn[:, 0])]
    grey = upright(crop.image[0, 0])
    return (
        heat_png(grey, spacing, rows, scaled_shades(grey, config.channels[0], recipe.intensity))
        if rows and columns
        else None
    )


def _means(of_cases: Measured, labels: Sequence[str]) -> LayerDice:
    """Means over the cases that have the label, label by label."""
    return {
        state: {
            path: {
                name: mean(values)
                for name, values in zip(labels, zip(*cases, strict=True), strict=True)
            }
            for path, cases in by_path.items()
        }
        for state, by_path in of_cases.items()
    }


def _without_nan(scores: LayerDice) -> dict[str, object]:
    return {
        state: {
            site: {
                label: None if math.isnan(value) else round(value, 6)
                for label, value in row.items()
            }
            for site, row in sites.items()
        }
        for state, sites in scores.items()
    }
