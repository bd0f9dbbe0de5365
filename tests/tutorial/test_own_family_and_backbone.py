"""The tutorial's family and backbone: the conformance tests take them in unasked, and so does
the catalogue.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE / "own_family_and_backbone.py"


def _run(*arguments: str) -> str:
    """Python with the example importable: a process of its own, so that no other test meets
    what it registers.
    """
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE.parent.parent,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_both_take_under_forty_lines():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40


def test_the_conformance_tests_take_them_in_unasked():
    conformance = str(HERE.parent / "adapters" / "test_conformance.py")
    pytest_with_it = (
        "-m",
        "pytest",
        "-vv",
        "--numprocesses=0",
        "-p",
        "own_family_and_backbone",
        "-p",
        "no:cacheprovider",
    )
    said = _run(*pytest_with_it, conformance, "-k", "pocket and gain")
    for check in (
        "identity",
        "off",
        "toggle",
        "acts",
        "cost",
        "roundtrip",
        "merge",
        "inherit",
        "gradients",
    ):
        assert f"[check_{check}-pocket-gain] PASSED" in said
    collected = _run(*pytest_with_it, "--collect-only", "-k", "gain or pocket")
    assert "[check_off-segresnet-gain]" in collected
    assert "[check_off-pocket-lora]" in collected


def test_they_are_on_offer():
    said = _run(
        "-c",
        "import own_family_and_backbone, torch\nfrom sea_peft import adapters, backbones\nknown ="
        " backbones.architecture('pocket')\nnetwork = known.build(width=8).eval()\nsites ="
        " backbones.find_sites(network, known.example(1))\nprint(*[unit.id for unit in"
        " adapters.units_for(network, sites, {'gain': adapters.Offer()})])",
    )
    assert said.split() == ["gain@norm"]
