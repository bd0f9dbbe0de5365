"""`--to peft`: LoRA units in the format of Hugging Face PEFT, and with them the fitted head."""

from __future__ import annotations

import collections
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from sea_peft import atomic
from sea_peft.adapters import Adapted, Unit
from sea_peft.adapters.head import TargetHead
from sea_peft.adapters.lora import LoRA
from sea_peft.backbones.typed import Typed
from sea_peft.data.wording import count
from sea_peft.errors import UsageError, WeightsError, first_line
from sea_peft.jobs.exporting.described import NAME, described, write_json
from sea_peft.jobs.exporting.trial import Trial
from sea_peft.jobs.folding import head_folded
from sea_peft.jobs.merge import compare
from sea_peft.jobs.model import open_recorded
from sea_peft.jobs.predictor import Predictor

CONFIG, TENSORS, HEAD, README = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "head.safetensors",
    "README.md",
)
_TOOL = "peft"
_WAY_OUT = "export --to bundle, onnx or torch, or adapt with --profile peft"
# PEFT adds LoRA as a branch and sea_peft as a change of the weight, which differ by roundings of
# float32 in every layer
_TOLERANCE = 1e-5


def require_lora(predictor: Predictor) -> None:
    """Raise UsageError, naming the unit, if PEFT's format cannot hold the adapter."""
    model = predictor.model
    if predictor.network == "both":
        raise UsageError("--use both runs two networks, and a PEFT adapter makes one; use adapted.")
    if predictor.network != "adapted":
        raise UsageError(
            f"The run recommends the unadapted network ({predictor.config.recommended.evidence}),"
            " which has no adapter to export; --use adapted exports it all the same."
        )
    units = _units(model)
    if not units:
        raise UsageError(
            f"The adapter has no unit, and a PEFT adapter has at least one LoRA; {_WAY_OUT}."
        )
    others = [unit.id for unit in units if not isinstance(model.bank[unit.id], LoRA)]
    if others:
        raise UsageError(
            f"PEFT's format holds LoRA alone, and {count(len(others), 'unit')} of this adapter's"
            f" {len(units)} are of other families (such as {others[0]}); {_WAY_OUT}."
        )
    for unit in units:
        if unit.site.kind == "transposed":
            raise UsageError(
                f"PEFT has no LoRA for transposed convolutions, where {unit.id} is; {_WAY_OUT}."
            )
        if any(
            step != 1
            for step in getattr(model.backbone.get_submodule(unit.site.path), "dilation", (1,))
        ):
            raise UsageError(
                f"PEFT leaves out the dilation of a convolution, which {unit.id} has; {_WAY_OUT}."
            )
    twice = [
        path for path, n in collections.Counter(unit.site.path for unit in units).items() if n > 1
    ]
    if twice:
        raise UsageError(
            f"PEFT holds one LoRA for a module, and {twice[0]} has several; {_WAY_OUT}."
        )
    if model.head_path is not None and model.backbone.get_submodule(model.head_path).bias is None:
        raise UsageError(
            f"The fitted head goes into the last convolution, and {model.head_path} has no bias to"
            " hold its own; export --to bundle, onnx or torch."
        )


def write(predictor: Predictor, folder: Path, trial: Trial, typed: Typed) -> float:
    """Write the folder, let PEFT load it onto the plain backbone, and compare logits and the mask
    of the trial's scan.

    A head on the last convolution's features goes along as that convolution (`modules_to_save`),
    one on the logits as a 1×1×1 convolution behind the network (`head.safetensors`). `typed`: the
    backbone or its weights, as for the predictor. Raises WeightsError if PEFT cannot load it, or
    gives something else.
    """
    model, head = predictor.model, predictor.model.head
    units, (path, weight, bias) = _units(model), head_folded(model)
    tensors = _tensors(units, model)
    if head.on_features:
        tensors |= {f"{path}.weight": weight, f"{path}.bias": bias}
    else:
        _write_tensors(folder / HEAD, {"weight": weight, "bias": bias})
    _write_tensors(
        folder / TENSORS, {f"base_model.model.{key}": tensor for key, tensor in tensors.items()}
    )
    write_json(folder / CONFIG, _config(units, model, [path] if head.on_features else None))
    write_json(folder / NAME, described(predictor) | _read_by(predictor))
    backbone = open_recorded(predictor.config.backbone, typed, "seapeft export …")
    network = backbone.pretrained.network
    widened = _widened(network, path, head.new) if head.on_features and head.new else None
    atomic.write_text(folder / README, _readme(predictor, path, widened))
    loaded = _loaded(network, folder)
    difference, largest, _ = compare(head, model, loaded, backbone.example)
    if difference > _TOLERANCE * max(1.0, largest):
        raise WeightsError(
            f"The logits of the network in {_TOOL} differ by up to {difference:.2g} from the"
            " adapted one's, so nothing was written; use the adapter as it is."
        )
    reader = TargetHead(head.rows, head.classes + head.new, None)

    def forward(x: torch.Tensor) -> torch.Tensor:
        logits = loaded(x)
        return reader(logits, logits, gate=False)

    return trial.agrees(predictor, forward, _TOOL)


def _units(model: Adapted) -> list[Unit]:
    return sorted(
        (model.bank.units[unit_id] for unit_id in model.bank.active),
        key=lambda unit: unit.site.order,
    )


def _config(units: list[Unit], model: Adapted, saved: list[str] | None) -> dict[str, object]:
    """The fields of a `LoraConfig` that are particular to this adapter; PEFT has the rest by
    default.

    PEFT scales a LoRA of rank r by alpha/r.
    """
    adapters = {unit.site.path: _lora(model, unit) for unit in units}
    ranks = {path: adapter.up.shape[1] for path, adapter in adapters.items()}
    alphas = {path: adapter.factor * ranks[path] for path, adapter in adapters.items()}
    rank, alpha = collections.Counter((ranks[path], alphas[path]) for path in ranks).most_common(1)[
        0
    ][0]
    # a pattern holds for every path that ends in it, and the first counts: every path has its own,
    # the longest first
    several = len({*zip(ranks.values(), alphas.values(), strict=True)}) > 1
    ordered = sorted(ranks, key=lambda path: (-len(path), path)) if several else []
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "target_modules": "|".join(re.escape(path) for path in ranks),
        "rank_pattern": {path: ranks[path] for path in ordered},
        "alpha_pattern": {path: _plain(alphas[path]) for path in ordered},
        "modules_to_save": saved,
    }


def _lora(model: Adapted, unit: Unit) -> LoRA:
    adapter = model.bank[unit.id]
    assert isinstance(adapter, LoRA), "require_lora has refused it"
    return adapter


def _plain(alpha: float) -> float | int:
    return int(alpha) if alpha == int(alpha) else alpha


def _tensors(units: list[Unit], model: Adapted) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for unit in units:
        adapter = _lora(model, unit)
        kernel = adapter.down.ndim - 2
        tensors[f"{unit.site.path}.lora_A.weight"] = adapter.down
        tensors[f"{unit.site.path}.lora_B.weight"] = adapter.up.view(
            *adapter.up.shape, *(1,) * kernel
        )
    return tensors


def _write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    stored = {key: tensors[key].detach().cpu().contiguous().clone() for key in sorted(tensors)}
    atomic.write_bytes(file, save(stored, metadata={"format": "pt"}))


def _widened(network: nn.Module, path: str, more: int) -> str:
    """Give the last convolution outputs for new labels, whose values come from the adapter. Returns
    the statement that does it.
    """
    last = network.get_submodule(path)
    assert isinstance(last, nn.Conv3d)
    fields = (
        last.in_channels,
        last.out_channels + more,
        last.kernel_size,
        last.stride,
        last.padding,
        last.dilation,
    )
    network.set_submodule(path, nn.Conv3d(*fields).eval().requires_grad_(False))  # type: ignore[arg-type]
    return f'network.set_submodule("{path}", torch.nn.Conv3d({", ".join(map(repr, fields))}))'


def _loaded(network: nn.Module, folder: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """The plain backbone with the exported adapter, loaded by PEFT, and the head: a window →
    logits.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of packages that PEFT looks for, and of what a network is called
        import peft

        try:
            loaded = peft.PeftModel.from_pretrained(network, str(folder)).eval()
        except Exception as error:
            raise WeightsError(
                f"{_TOOL} cannot load what was exported ({first_line(error)}), so nothing was"
                " written; use the adapter as it is."
            ) from error
    behind = load_file(folder / HEAD) if (folder / HEAD).is_file() else None

    def forward(x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = loaded(x)
        return (
            logits
            if behind is None
            else nn.functional.conv3d(logits, behind["weight"], behind["bias"])
        )

    return forward


def _read_by(predictor: Predictor) -> dict[str, object]:
    """What is particular to this target in `network.json`."""
    model, classes = predictor.model, _classes(predictor)
    return {
        "output": f"float32 logits [1, {len(classes)}, …], in the order of classes",
        "classes": classes,
        "rows": dict(zip(predictor.labels, model.head.rows, strict=True)),
        "background": "logsumexp of the logits of all other classes",
        "head": f"modules_to_save {model.head_path}" if model.head.on_features else HEAD,
    }


def _classes(predictor: Predictor) -> list[str]:
    """What each output of the network is: the backbone's classes, and new labels behind them."""
    known = predictor.loaded.backbone.pretrained.card.labels
    rows = predictor.config.head.rows
    return [
        *known,
        *(label for label, row in zip(predictor.labels, rows, strict=True) if row is None),
    ]


def _readme(predictor: Predictor, head: str, widened: str | None) -> str:
    config, rows, classes = (
        predictor.config,
        list(predictor.model.head.rows),
        len(_classes(predictor)),
    )
    others = [row for row in range(classes) if row not in rows]
    patch = ", ".join(map(str, config.window.patch))
    if predictor.model.head.on_features:
        where, load, logits = f"its last convolution (`{head}`)", "", "model(window)"
    else:
        where = f"a convolution behind it (`{HEAD}`)"
        load = f'head = load_file("{HEAD}")\n'
        logits = 'torch.nn.functional.conv3d(model(window), head["weight"], head["bias"])'
    wider = (
        ""
        if widened is None
        else f"{widened}  # with outputs for new labels; their values are in the adapter\n"
    )
    loading = "from safetensors.torch import load_file\n" if load else ""
    loras = count(len(config.units), "LoRA")
    return f"""# LoRA for {config.backbone.weights}

Made by `seapeft export --to peft`: {loras} on a {config.backbone.architecture},
and {where} with the head that was fitted with them.
PEFT 0.15 or newer puts them onto the plain backbone, whose tensors have the hash
{config.backbone.sha256[:12]}:

```python
import torch
from peft import PeftModel
{loading}
network = …  # the backbone with its own weights
{wider}model = PeftModel.from_pretrained(network, ".").eval()  # this folder
{load}logits = {logits}
background = logits[:, {others}].logsumexp(dim=1, keepdim=True)
labels = torch.cat([background, logits[:, {rows}]], dim=1).softmax(dim=1)
```

A window is [1, {len(config.channels)}, {patch}], `logits` are [1, {classes}, {patch}],
and `labels` are the probabilities of background, {", ".join(predictor.labels)}.
Where sea_peft is installed, the backbone is
`sea_peft.backbones.weights.load_pretrained("{config.backbone.weights}").network`;
elsewhere, whatever builds it. `{NAME}` says what else there is to know: orientation, voxel size
and grey values of a scan, and the sliding window. Research software, not a medical device: a
qualified person must check every mask.
"""
