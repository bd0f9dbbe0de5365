"""What an installed package adds by entry points is on offer like what is ours, and one that is
broken is named.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

POLICY = """
from sea_peft.loop.policies import register
from sea_peft.loop.policies.fixed import topology

def costliest(space, seed):
    return space.room().fill(space.cheapest_first()[::-1])

register(topology("costliest", "the costliest units first", costliest))
"""
FAMILY = """
import torch
from torch import nn
from sea_peft.adapters import Adapter, register

@register
class Gain(Adapter):
    family = "gain"
    kinds = frozenset({"norm"})

    def __init__(self, site, module, level, placement, generator):
        super().__init__(site, module, level, placement, generator)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x, y):
        return y + self.gain * y
"""
BACKBONE = """
from torch import nn
from sea_peft.backbones import Architecture, register

build = lambda in_channels=1, out_channels=2: nn.Conv3d(in_channels, out_channels, 1)
fixed = {"divisor": 1, "minimum": 1, "paper": "-", "licence": "-", "small": {}}
register(Architecture(name="pocket", build=build, **fixed))
"""


def install(folder: Path, **modules: str) -> Path:
    """What pip leaves of a package: its modules, and its metadata with an entry point for each
    of them.
    """
    for group, text in modules.items():
        (folder / f"added_{group}.py").write_text(text)
    info = folder / "added-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: added\nVersion: 1.0\n")
    points = [f"[sea_peft.{group}]\nown = added_{group}\n" for group in modules]
    (info / "entry_points.txt").write_text("\n".join(points))
    return folder


def seapeft(beside: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with that package installed."""
    code = (
        f"import sys; sys.path.append({str(beside)!r}); from sea_peft.cli import run;"
        f" sys.exit(run({list(arguments)!r}))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_families_backbones_and_policies_of_an_installed_package_are_on_offer(tmp_path):
    install(tmp_path, families=FAMILY, backbones=BACKBONE, policies=POLICY)
    done = seapeft(tmp_path, "policies", "list", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["policies"]}
    assert rows["costliest"] == {
        "name": "costliest",
        "about": "the costliest units first",
        "within_budget": True,
    }
    assert "gain" in rows, "a family has its uniform topology by itself"
    assert next(iter(rows)) == "sea"
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r})\n"
        "from sea_peft.adapters import families\nfrom sea_peft.backbones import architecture\n"
        "print(families()['gain'].__module__, architecture('pocket').name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["added_families", "pocket"], done.stderr


def test_a_package_that_cannot_be_imported_is_named_in_one_sentence(tmp_path):
    install(tmp_path, policies="import a_module_that_nobody_has")
    done = seapeft(tmp_path, "policies", "list")
    assert done.returncode == 2
    assert (
        "added adds policies to sea_peft by added_policies, which cannot be imported" in done.stderr
    )
    assert "mend or uninstall added" in done.stderr


def test_what_stays_in_the_product_is_listed_and_what_papers_compare_with_is_not():
    code = "from sea_peft.loop.policies import policies; print(*policies())"
    listed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"sea", "affine_lora", "full", "decoder_full", "lora", "uniform"} <= set(listed)
    assert not [
        n
        for n in listed
        if n.endswith("_paper")
        or n.startswith(("sea_", "random_mix", "conv_adapter_", "adalora", "arena", "spt"))
    ]
