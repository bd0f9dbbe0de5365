"""Arguments and flags that several verbs share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from sea_peft.errors import UsageError

Adapter = Annotated[
    Path, Argument(metavar="ADAPTER", help="An adapter folder, or the run folder that holds it.")
]
Run = Annotated[Path, Argument(metavar="RUN", help="A run folder.")]
Weights = Annotated[
    str | None,
    Option(metavar="NAME|FILE", help="Pretrained weights: a name of `backbones list`, or a file."),
]
Backbone = Annotated[
    str | None,
    Option(
        metavar="NAME|M:F",
        help="Architecture: a name of `backbones list`, or module:factory, which runs.",
    ),
]
Device = Annotated[str, Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.")]
Labels = Annotated[
    list[str] | None,
    Option(
        "--label",
        metavar="NAME[=1,2,4]",
        help="A label, or codes taken together as one. Several allowed.",
    ),
]
Channels = Annotated[
    list[str] | None,
    Option(
        "--channel", metavar="NAME", help="A channel, in the backbone's order. Several allowed."
    ),
]
Runs = Annotated[Path, Option(metavar="DIR", help="Where runs and the MLflow store lie.")]
Profile = Annotated[str, Option(metavar="NAME|FILE", help="Budget profile: what is on offer.")]
Full = Annotated[bool, Option("--full", help="Module paths in full instead of short names.")]
Use = Annotated[
    str | None,
    Option(
        "--use",
        metavar="adapted|unadapted|both",
        help=(
            "Network to use; both: added labels adapted, the others unadapted; left out: as the run"
            " recommends."
        ),
    ),
]
Keep = Annotated[
    list[str] | None,
    Option(
        metavar="RULE",
        help=(
            "Connected parts to keep: largest, N, min-ml=X or all; LABEL=RULE for one label; left"
            " out: as the run has chosen."
        ),
    ),
]
With = Annotated[
    list[Path] | None,
    Option(
        "--with",
        metavar="ADAPTER",
        help="Another adapter, averaged with the first. Several allowed.",
    ),
]
Ensemble = Annotated[
    str | None,
    Option(metavar="mean", help="With --with: the mean of the adapters' probabilities (default)."),
]


def require_mean(ensemble: str | None, others: Sequence[Path] | None) -> None:
    """Raise UsageError for a way of averaging that there is not, or with nothing to average."""
    if ensemble is not None and ensemble != "mean":
        raise UsageError(f"--ensemble {ensemble} is not known; there is mean.")
    if ensemble is not None and not others:
        raise UsageError(
            "--ensemble takes several adapters; name the others, each by --with ADAPTER."
        )
