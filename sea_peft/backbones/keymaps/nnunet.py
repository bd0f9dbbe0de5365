"""nnU-Net v2's `checkpoint_final.pth`: the network's tensors, and beside them the plans and the
data set's description.

Labels, channels, voxel size, patch and grey-value scaling are read from there. nnU-Net does not
reorient scans: it takes a scan's axes in SimpleITK's order (z, y, x), which for scans in DICOM's
order is superior, posterior, left. Which order the scans were stored in is said nowhere.
TotalSegmentator (Wasserthal et al. 2023, doi 10.1148/ryai.230024) reorients a scan's x, y, z to
right, anterior, superior before its nnU-Net reads it.
"""

from collections.abc import Mapping

from sea_peft import documents
from sea_peft.backbones.checkpoints import Checkpoint
from sea_peft.backbones.keymaps.origin import Known, Origin, Said, keep
from sea_peft.data.recipe import Recipe
from sea_peft.errors import WeightsError

_AXES, _TOTALSEGMENTATOR_AXES = "SPL", "SAR"
_RESAMPLING = "resample_data_or_seg_to_shape"


def as_stored(orientation: str, stored: str) -> str | None:
    """The orientation to import an nnU-Net with whose training scans were stored as `stored` (of
    their x, y, z), where the import assumed `orientation`. None if that is no assumption, or was
    right, or the axes stand in another order.

    >>> as_stored("SPL", "RAS")
    'SAR'
    """
    ways = dict(zip("LPS", stored, strict=True))
    in_order = all(
        {*pair} <= {*axis} for pair, axis in zip(ways.items(), ("LR", "PA", "SI"), strict=True)
    )
    if set(orientation) != set(_AXES) or not in_order or stored == "LPS":
        return None
    return "".join(ways[axis] for axis in orientation)


def _know(checkpoint: Checkpoint, _backbone: str) -> Known:
    given = checkpoint.content.get("init_args")
    if (
        not isinstance(given, Mapping)
        or not {"plans", "configuration", "dataset_json"} <= given.keys()
    ):
        return Known(inferer="nnunet")
    plans, described = given["plans"], given["dataset_json"]
    try:
        configuration = _resolved(plans["configurations"], given["configuration"])
        channels = tuple(
            str(name)
            for _, name in sorted(described["channel_names"].items(), key=lambda item: int(item[0]))
        )
        intensity, settings = _grey_values(plans, configuration, len(channels))
        total = "TotalSegmentator" in str(plans.get("dataset_name"))
        notes = _other_resampling(configuration)
        if total:
            notes = (
                *notes,
                (
                    "It is TotalSegmentator's by its data set, and so are its axes: every scan is"
                    " turned to them."
                ),
            )
        order = plans["transpose_forward"]
        sides, spacing = (
            [int(side) for side in configuration["patch_size"]],
            configuration["spacing"],
        )
        if len(sides) != 3:
            raise WeightsError(
                f"{checkpoint.file.name} is a 2D network; only 3D configurations can be taken in."
            )
        axes = _TOTALSEGMENTATOR_AXES if total else _AXES
        stated = {
            "orientation": "".join(axes[axis] for axis in order),
            "spacing": [float(mm) for mm in spacing],
        }
        as_nnunet = {"resampler": "nnunet", "crop_foreground": True, "margin": 0.0}
        recipe = documents.check(Recipe, {**stated, **as_nnunet, "intensity": intensity})
        labels = _labels(described["labels"], checkpoint.file.name)
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise WeightsError(
            f"{checkpoint.file.name}: the plans in it are not as nnU-Net v2 writes them"
            f" ({type(error).__name__}: {str(error)[:120]})."
        ) from error
    return Known(
        labels=labels,
        channels=channels,
        recipe=recipe,
        assumed=frozenset() if total else frozenset({"orientation"}),
        patch=(sides[0], sides[1], sides[2]),
        settings=settings,
        notes=notes,
        inferer="nnunet",
    )


def _resolved(configurations: Said, name: str) -> Said:
    """A configuration, with the values that it inherits."""
    own = dict(configurations[name])
    parent = own.pop("inherits_from", None)
    return own if parent is None else {**_resolved(configurations, parent), **own}


def _other_resampling(configuration: Said) -> tuple[str, ...]:
    """A note if the plans resample otherwise than nnU-Net by default."""
    used = {
        configuration.get(f"resampling_fn_{what}", _RESAMPLING)
        for what in ("data", "probabilities")
    }
    order = configuration.get("resampling_fn_data_kwargs", {}).get("order", 3)
    if used == {_RESAMPLING} and order == 3:
        return ()
    listed = ", ".join(sorted(used))
    return (
        (
            f"The checkpoint's scans were resampled by {listed} of order {order}; here they are by"
            " nnU-Net's usual function, cubically."
        ),
    )


def _labels(labels: Said, file: str) -> tuple[str, ...]:
    """Names in the order of the outputs. The ignore label has no output."""
    if not all(isinstance(code, int) for code in labels.values()):
        raise WeightsError(
            f"{file} was trained on regions that overlap, one sigmoid each; only one class a voxel"
            " can be taken in."
        )
    named = {
        code: str(name) for name, code in labels.items() if name not in ("background", "ignore")
    }
    return tuple(named[code] for code in sorted(named))


def _grey_values(plans: Said, configuration: Said, channels: int) -> tuple[Said, Said]:
    """The recipe's intensity and the network's settings.

    nnU-Net clips CT to percentiles [l, h] of the training data and computes (x − m)/s; a recipe
    computes (x − l)/(h − l). A map in front of the network turns one into the other: factor (h −
    l)/s, offset (l − m)/s.
    """
    schemes = set(configuration["normalization_schemes"])
    if schemes == {"CTNormalization"} and channels == 1:
        of = plans["foreground_intensity_properties_per_channel"]["0"]
        low, high = float(of["percentile_00_5"]), float(of["percentile_99_5"])
        mean, deviation = float(of["mean"]), max(float(of["std"]), 1e-8)
        settings = {
            "input_factor": (high - low) / deviation,
            "input_offset": (low - mean) / deviation,
        }
        return {"kind": "window", "low": low, "high": high}, settings
    if schemes == {"ZScoreNormalization"}:
        in_body = set(configuration["use_mask_for_norm"])
        if len(in_body) > 1:
            raise WeightsError(
                "The checkpoint's z-scores are over the body in some channels only, which no recipe"
                " here does."
            )
        return {"kind": "zscore", "over": "foreground" if in_body == {True} else "box"}, {}
    listed = ", ".join(sorted(schemes))
    raise WeightsError(
        f"The checkpoint scales grey values by {listed} over {channels} channels, which no recipe"
        " here does."
    )


NNUNET = Origin(
    name="nnunet",
    about="nnU-Net v2, Isensee et al. 2021, github.com/MIC-DKFZ/nnUNet",
    backbones=("nnunet_plain", "nnunet_resenc"),
    recognises=lambda checkpoint: "decoder.seg_layers.0.weight" in checkpoint.tensors,
    rename=keep,
    know=_know,
)
