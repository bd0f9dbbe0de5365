"""What the network sees at once is the patch that it was trained on, in every job; MONAI's own
inferer gives the same masks.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from toys import make_adapter

from sea_peft.backbones.typed import Typed
from sea_peft.backbones.weights import BUNDLED, cards, read_card
from sea_peft.data.prepare import prepare, restore, restore_probability
from sea_peft.data.sliding import SlidingWindow
from sea_peft.data.volumes import Volume, read_volume, write_volume
from sea_peft.jobs.inference import probabilities
from sea_peft.jobs.inputs import find_cases
from sea_peft.jobs.model import load_adapter
from sea_peft.jobs.options import AdaptOptions
from sea_peft.jobs.predict import predict
from sea_peft.jobs.predictor import Predictor
from sea_peft.jobs.setup import prepare_run
from sea_peft.jobs.target import open_data

EXAMPLE = Path(__file__).resolve().parents[2] / "runs" / "example"
BOXES = {"larger than a patch along one axis": (60, 48, 32), "smaller than a patch": (40, 52, 20)}


def _by_monai(model: torch.nn.Module, image: torch.Tensor, window: SlidingWindow) -> torch.Tensor:
    """Probabilities [K, D, H, W] as MONAI's inferer gives them."""
    with torch.no_grad():
        found = sliding_window_inference(
            image[None],
            window.patch,
            1,
            lambda x: model(x).softmax(dim=1),
            overlap=window.overlap,
            mode="gaussian",
        )
    return torch.as_tensor(found)[0]


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
@pytest.mark.parametrize(
    "name", sorted(set(cards()) & {path.stem for path in BUNDLED.glob("*.json")})
)
def test_masks_are_those_of_monais_sliding_window(
    name: str, box: tuple[int, int, int], tmp_path: Path
) -> None:
    card = read_card(BUNDLED / f"{name}.json")
    labels = {label: [code] for code, label in enumerate(card.labels) if code}
    weights = str(BUNDLED / f"{name}.safetensors")
    adapter = make_adapter(tmp_path / "adapter", Path(weights), labels, card.channels, ("affine",))
    source = open_data("phantom:brain-source" if "brain" in name else "phantom:low-dose-ct")
    case = source.cases[0]
    for number, channel in enumerate(source.channels):
        volume = case.image(channel)
        middle = tuple(
            slice((n - b) // 2, (n - b) // 2 + b) for n, b in zip(volume.shape, box, strict=True)
        )
        path = tmp_path / "scans" / f"p_{number:04d}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        write_volume(path, Volume(volume.array[middle], volume.affine))
    (status,) = predict(
        adapter, [tmp_path / "scans"], tmp_path / "out", typed=Typed(weights=weights)
    )
    assert status.error is None
    found = read_volume(tmp_path / "out" / status.mask).array

    model, config = load_adapter(adapter, Typed(weights=weights))
    (scanned,) = find_cases([tmp_path / "scans"], tuple(card.channels))
    scan = prepare(scanned, config.recipe, tuple(card.channels))
    expected = _by_monai(model, scan.image, config.window)
    best = np.sort(
        np.stack([restore_probability(expected, k, scan.geometry) for k in range(len(expected))]),
        axis=0,
    )
    clear = best[-1] - best[-2] >= 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], restore(expected, scan.geometry)[clear])


def test_patches_that_tile_an_audit_case_and_predict_score_the_same() -> None:
    """What an audit sees is what a score sees: Dice from disjoint voxels of patches, pooled,
    against that of the whole mask.
    """
    predictor = Predictor(EXAMPLE)
    (case,) = prepare_run(AdaptOptions(seed=predictor.config.seed), print).split.audit
    scan = prepare(case, predictor.config.recipe, predictor.channels, predictor.labels)
    patch, count = predictor.config.window.patch, len(predictor.labels)
    tiled = torch.full(scan.label.shape, -1)
    starts = [
        sorted({*range(0, n - p, p), n - p}) for n, p in zip(scan.label.shape, patch, strict=True)
    ]
    for corner in itertools.product(*starts):
        d, h, w = (slice(start, start + side) for start, side in zip(corner, patch, strict=True))
        with torch.no_grad():
            logits = predictor.model(scan.image[None, :, d, h, w])
        seen = tiled[d, h, w]
        seen[seen < 0] = logits.argmax(dim=1)[0][seen < 0]
    (whole,) = probabilities(
        predictor.model, scan, predictor.config.window, torch.device("cpu"), batch=2
    )
    means = [
        _mean_dice(mask, scan.label, count)
        for mask in (tiled, whole.read(0, len(tiled)).argmax(dim=0))
    ]
    assert means[0] == pytest.approx(means[1], abs=0.03)
    assert min(means) > 0.5  # both segment at all


def _mean_dice(mask: torch.Tensor, label: torch.Tensor, count: int) -> float:
    dice = []
    for k in range(1, count + 1):
        p, r = mask == k, label == k
        if r.any():
            dice.append(2 * int((p & r).sum()) / int(p.sum() + r.sum()))
    return float(np.mean(dice))
