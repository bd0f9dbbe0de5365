"""Exports for Hugging Face PEFT, loaded by it; and what its format cannot hold."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from toys import make_adapter

from sea_peft import load_adapter
from sea_peft.adapters import Unit
from sea_peft.artefacts.adapter_file import CONFIG_NAME, Recommendation, read_adapter_config
from sea_peft.backbones.typed import Typed
from sea_peft.backbones.weights import load_typed
from sea_peft.errors import UsageError
from sea_peft.jobs.export import export
from sea_peft.jobs.exporting.peft import require_lora
from sea_peft.jobs.predictor import Predictor

BUNDLED = Path("phantom_unet")  # its head acts on the logits, and it has transposed convolutions


def one_a_site(units: Sequence[Unit]) -> list[Unit]:
    """One unit at every site but transposed ones: families and levels in turn."""
    sites: dict[str, list[Unit]] = {}
    for unit in units:
        if unit.site.kind != "transposed":
            sites.setdefault(unit.site.path, []).append(unit)
    return [offered[number % len(offered)] for number, offered in enumerate(sites.values())]


def of_the_readme(folder: Path, network: torch.nn.Module, window: torch.Tensor) -> torch.Tensor:
    """The probabilities that the code in the README gives."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    code = code.replace("network = …", "").replace('"."', repr(str(folder)))
    names = {"network": network, "window": window}
    with torch.no_grad():
        exec(code.replace("head.safetensors", f"{folder}/head.safetensors"), names)
    return names["labels"]


@pytest.mark.parametrize(
    "own", [True, False], ids=["head in the last convolution", "head on the logits"]
)
def test_peft_loads_an_exported_adapter_onto_the_plain_backbone(own, weights, tmp_path) -> None:
    pytest.importorskip("peft")
    weights = weights if own else BUNDLED
    labels = {"organ": [1], "spot": [2]} if own else {"liver": [1], "tumour": [2], "spine": [3]}
    families = ("lora", "lora_rs", "lora_half")
    adapter = make_adapter(tmp_path / "adapter", weights, labels, ["CT"], families, one_a_site)
    assert {unit.family for unit in read_adapter_config(adapter).units} == set(families)
    typed = Typed(weights=str(weights))
    made = export(adapter, "peft", tmp_path / "out", typed=typed)
    head = [] if own else ["head.safetensors"]
    assert set(made.files) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "network.json",
        *head,
    }
    assert made.agreement >= 0.999
    model, config = load_adapter(adapter, typed)
    window = torch.rand(1, 1, *config.window.patch, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(window).softmax(dim=1)
    found = of_the_readme(made.folder, load_typed(typed).network, window)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    told = json.loads((made.folder / "network.json").read_text())
    assert told["rows"] == dict(zip(labels, model.head.rows, strict=True))


def _transposed(units: Sequence[Unit]) -> list[Unit]:
    return [next(unit for unit in units if unit.site.kind == "transposed")]


def _two_at_one_site(units: Sequence[Unit]) -> list[Unit]:
    first = next(unit for unit in units if unit.family == "lora")
    return [
        first,
        next(u for u in units if u.family == "lora_rs" and u.site.path == first.site.path),
    ]


@pytest.mark.parametrize(
    ("families", "pick", "said"),
    [
        (
            ("affine", "lora"),
            None,
            r"LoRA alone, and 1 unit of this adapter's 2 are of other families \(such as affine@",
        ),
        (("lora",), _transposed, "no LoRA for transposed convolutions, where lora-1@"),
        (
            ("lora", "lora_rs"),
            _two_at_one_site,
            "PEFT holds one LoRA for a module, and .* has several",
        ),
        (("lora",), lambda _: [], "The adapter has no unit"),
    ],
    ids=["another family", "transposed", "two at one site", "the head alone"],
)
def test_what_the_format_cannot_hold_is_refused_by_name(
    families, pick, said, weights, tmp_path
) -> None:
    weights = BUNDLED if pick is _transposed else weights
    adapter = make_adapter(tmp_path / "adapter", weights, {"organ": [1]}, ["CT"], families, pick)
    with pytest.raises(
        UsageError, match=f"{said}.*--to bundle, onnx or torch, or adapt with --profile peft"
    ):
        require_lora(Predictor(adapter, Typed(weights=str(weights)), "cpu"))


def test_there_is_no_adapter_in_a_network_that_is_not_adapted(adapter, weights) -> None:
    recommended = Recommendation(network="unadapted", evidence="3 test cases")
    config = read_adapter_config(adapter)
    before = (adapter / CONFIG_NAME).read_bytes()
    (adapter / CONFIG_NAME).write_text(
        config.model_copy(update={"recommended": recommended}).model_dump_json()
    )
    try:
        with pytest.raises(
            UsageError,
            match=r"recommends the unadapted network \(3 test cases\), which has no adapter",
        ):
            require_lora(Predictor(adapter, Typed(weights=str(weights)), "cpu"))
    finally:
        (adapter / CONFIG_NAME).write_bytes(before)


def test_without_peft_its_export_says_what_to_install(adapter, weights, tmp_path) -> None:
    try:
        import peft  # noqa: F401
    except ImportError:
        with pytest.raises(
            UsageError, match=r"--to peft needs peft, .*`pip install 'sea_peft\[peers\]'`"
        ):
            export(adapter, "peft", tmp_path / "out", typed=Typed(weights=str(weights)))
        assert not (tmp_path / "out").exists()
    else:
        pytest.skip("peft is installed")
