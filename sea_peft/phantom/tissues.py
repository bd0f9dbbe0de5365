"""The look of tissues in CT, from `tissues_ct.csv`: Hounsfield units without contrast medium, the
enhancement by iodine in each phase, and the share of an oral contrast medium in each part of the
gut.

Chosen round numbers for 120 kVp, in the ranges of common practice:

- unenhanced: water 0 and air -1000 by definition, normal liver 58 HU (SD 9) in post-mortem CT (Int
  J Legal Med 133:1861, 2019); they shift between scanners (Lamba et al., AJR 203:1013, 2014). The
  other tissues are not taken from one measurement;
- contrast phases: Goshima et al., AJR 187:W25 (2006), MDCT of the liver and hypervascular
  hepatocellular carcinomas. Above unenhanced, late arterial: aorta 300 HU and more, spleen 97-108,
  portal vein 75-104, liver 15-25; portal venous: liver 59-63, aorta 117-125, spleen 73-82.

They vary between patients; `ct` draws that spread.
"""

import csv
from importlib import resources


def table(name: str) -> list[dict[str, str]]:
    """The rows of a table of this folder: column → cell."""
    text = resources.files("sea_peft.phantom").joinpath(name).read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


def _column(name: str) -> dict[str, float]:
    """Tissue → its cell, if it is not empty."""
    return {row["tissue"]: float(row[name]) for row in table("tissues_ct.csv") if row[name]}


# HU at 120 kVp
UNENHANCED = _column("unenhanced")
# HU that iodine adds: in the portal venous phase, and about 35 s after the injection, when
# hypervascular lesions stand out
PORTAL_VENOUS, LATE_ARTERIAL = _column("portal_venous"), _column("late_arterial")
# Shares of the HU of the medium itself
ORALLY_FILLED = _column("oral")

# Lesions of other kinds than the source's solid, poorly enhancing ones. Unenhanced HU of cysts,
# which are nearly water:
CYSTS: dict[str, float] = {"lesion": 12, "lesion_core": 6}
# What iodine adds late arterially to hypervascular ones: they stand out by about 90 HU, which is
# much (chosen; for hepatocellular carcinomas 47 HU, SD 19, were measured at the best moment, PubMed
# 17329690)
HYPERVASCULAR: dict[str, float] = {"lesion": 126, "lesion_core": 90}
