"""`seapeft backbones try`: a network's mask of one scan before any training, and how it expects the
scan to be oriented and scaled.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np

from sea_peft.atomic import make_folder, write_bytes
from sea_peft.backbones.batching import batch_for_masks
from sea_peft.backbones.keymaps.nnunet import as_stored
from sea_peft.backbones.typed import Typed
from sea_peft.backbones.weights import load_pretrained, load_typed
from sea_peft.data.cases import FileCase, safe_name
from sea_peft.data.codes import require_codes
from sea_peft.data.grids import require_same_grid
from sea_peft.data.prepare import prepare, restore
from sea_peft.data.progress import Progress, unwatched
from sea_peft.data.recipe import Recipe
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.data.wording import count
from sea_peft.errors import DataError, UsageError
from sea_peft.jobs.inference import probabilities
from sea_peft.jobs.inputs import find_cases
from sea_peft.jobs.model import matching_rows, resolve_device
from sea_peft.jobs.preview import preview_png
from sea_peft.jobs.readings import Reading, Scaling, Search, Wanted, confusion, dice_table
from sea_peft.jobs.shades import shades

SECONDS = 150.0  # for the search, after the network's own mask
# Dice from which a network counts as finding the labels: large masks overlap a little by chance
FOUND = 0.1
_CLEARLY = 0.02  # Dice by which another reading must be ahead to be mentioned
_MOST_CODES = 64

Codes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tried:
    """The result of `try_backbone`.

    Attributes:
        weights: their name.
        case: the scan's name.
        mask: file of the mask.
        picture: file of the picture.
        volumes: label → millilitres.
        dice: label → Dice, for labels that the given mask has.
        codes: label → the given mask's codes for it.
        named: whether the user named these codes. Otherwise they are those that overlap most.
        own: the card's reading of the scan; None without a given mask.
        better: readings that fit clearly better, the best first.
        looked_at: number of readings that there was time to try.
        ways: number of possible readings.
        seconds: time that it took.
    """

    weights: str
    case: str
    mask: Path
    picture: Path
    volumes: Mapping[str, float]
    dice: Mapping[str, float]
    codes: Codes
    named: bool
    own: Reading | None
    better: tuple[Reading, ...]
    looked_at: int
    ways: int
    seconds: float


def try_backbone(
    weights: str | Typed,
    scan: Path,
    label: Path | None = None,
    *,
    codes: Codes | None = None,
    out: Path = Path("tried"),
    device: str = "auto",
    overwrite: bool = False,
    seconds: float = SECONDS,
    say: Callable[[str], None] | None = None,
    progress: Progress = unwatched,
) -> Tried:
    """Write the unadapted mask of one scan and its picture to `out`. Returns volumes and, with a
    mask, Dice and the best reading.

    Args:
        weights: the name of installed weights, or `Typed` for a file with its card or a
            `package.module:factory`.
        scan: a file or a DICOM folder.
        label: a label map on the scan's grid.
        codes: label of the network → codes of the mask. By default, each code counts for the class
            that it overlaps most.
        out: made if it is missing.
        device: as on the command line.
        overwrite: replace an earlier mask and picture.
        seconds: time to search for the best orientation and scaling; 0 for no search.
        say: receives sentences for the user.
        progress: called with (done, of) while searching.

    Raises:
        DataError: the scan or the mask cannot be read, or do not belong together; or the network's
            mask cannot be written.
        UsageError: results exist, several scans are given, a label is none of the network's, or its
            classifier is untrained.
        WeightsError: the weights are refused.
        DeviceError: the device is refused.
        DiskError: `out` cannot be made, or the picture cannot be written.
    """
    began = time.monotonic()
    on = resolve_device(device)
    pretrained = load_typed(weights) if isinstance(weights, Typed) else load_pretrained(weights)
    card, network = pretrained.card, pretrained.network.to(on)
    if len(card.labels) < 2:
        raise UsageError(
            f"{card.name} has an untrained classifier, so there is no mask to look at; import it"
            " with --labels, or adapt it."
        )
    cases = find_cases([scan], card.channels, say=say)
    if len(cases) != 1:
        raise UsageError(f"{scan} holds {count(len(cases), 'scan')}; give one of them.")
    case = cases[0]
    stem = f"{safe_name(case.id)}-{safe_name(card.name)}"
    mask_file, picture = out / f"{stem}.nii.gz", out / f"{stem}.png"
    for path in (mask_file, picture):
        if path.exists() and not overwrite:
            raise UsageError(
                f"{path} exists already; choose another --out, or replace it with --overwrite."
            )
    wanted = None if label is None else _wanted(case, card.channels[0], label, card.labels, codes)
    recipe = Recipe.model_validate(card.recipe)
    prepared = prepare(case, recipe, card.channels)
    notes = [f"{note}." for note in prepared.notes]
    stored = "".join(nibabel.aff2axcodes(prepared.geometry.affine))
    if card.origin == "nnunet" and (other := as_stored(recipe.orientation, stored)):
        notes.append(
            f"nnU-Net takes a scan's axes as they are stored. This one is stored as {stored}; if"
            f" the network was trained on scans stored like it, import it with --orientation"
            f" {other}. A network trained with mirroring may show no difference here."
        )
    for note in notes:
        if say is not None:
            say(note)
    (output,) = probabilities(network, prepared, card.window(), on, batch_for_masks(network))
    found, affine = restore(output, prepared.geometry), prepared.geometry.affine
    millilitres = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
    names = card.labels[1:]
    volumes = {
        name: round(int(np.count_nonzero(found == i)) * millilitres, 3)
        for i, name in enumerate(names, start=1)
    }
    make_folder(out)
    image = case.image(card.channels[0])
    shown = shades(np.asarray(image.array), card.channels[0], card.recipe.intensity)
    write_bytes(picture, preview_png(image, {"": found}, names, prepared.geometry, shown))
    write_volume(mask_file, Volume(found, affine))
    dice: dict[str, float] = {}
    taken: dict[str, tuple[int, ...]] = {}
    own: Reading | None = None
    better: tuple[Reading, ...] = ()
    looked_at = ways = 0
    if wanted is not None:
        table = confusion(found, wanted.indices, len(card.labels), len(wanted.entries))
        mean, rows = wanted.score(table)
        for entry, row in rows.items():
            dice[card.labels[row]] = float(dice_table(table)[entry, row - 1])
            taken[card.labels[row]] = wanted.entries[entry]
        own = Reading(recipe.orientation, Scaling.of(recipe.intensity, card.kwargs).words, mean)
        if seconds > 0:
            search = Search(pretrained, case, wanted, on, seconds)
            least = max(mean + _CLEARLY, FOUND)
            better = tuple(reading for reading in search.best(progress) if reading.dice > least)
            looked_at, ways = search.looked_at, search.ways
    return Tried(
        weights=card.name,
        case=case.id,
        mask=mask_file,
        picture=picture,
        volumes=volumes,
        dice=dice,
        codes=taken,
        named=codes is not None,
        own=own,
        better=better,
        looked_at=looked_at,
        ways=ways,
        seconds=time.monotonic() - began,
    )


def _wanted(
    case: FileCase, channel: str, label: Path, labels: Sequence[str], codes: Codes | None
) -> Wanted:
    """The mask on the scan's grid, and the network's labels that its codes stand for."""
    if not label.is_file():
        raise DataError(f"no such file: {label}; check the path")
    volume = read_volume(label)
    require_same_grid(case.id, "label", volume, "image", case.image(channel))
    require_codes(volume.array, f"case {case.id}: label")
    stored = np.rint(volume.array).astype(np.int64)
    present = [code for code in np.unique(stored).tolist() if code != 0]
    rows: tuple[int, ...] | None = None
    entries: list[tuple[int, ...]] = [(code,) for code in present]
    if codes is not None:
        named = matching_rows(labels, list(codes))
        for name, row in zip(codes, named, strict=True):
            if row is None:
                raise UsageError(
                    f"--class {name} is none of the network's labels: {', '.join(labels[1:])}."
                )
        pairs = [
            (own, row)
            for own, row in zip(codes.values(), named, strict=True)
            if row and set(own) & set(present)
        ]
        entries, rows = [own for own, _ in pairs], tuple(row for _, row in pairs)
    if not entries:
        raise DataError(
            f"{label.name} holds none of the labels that are asked for; check it, and --class"
        )
    if len(entries) > _MOST_CODES:
        raise DataError(
            f"{label.name} holds {len(entries)} different values; is it a scan, and no label map?"
        )
    indices = np.zeros(stored.shape, dtype=np.uint8)
    for index, own in enumerate(entries, start=1):
        indices[np.isin(stored, own)] = index
    return Wanted(indices, tuple(entries), rows)
