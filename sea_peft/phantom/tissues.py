"""What tissues look like to CT: Hounsfield units without contrast medium, and what iodine adds to them by phase.

Chosen round numbers for 120 kVp, in the ranges of common practice:

- unenhanced: water 0 and air -1000 by definition, normal liver 58 HU (SD 9) in post-mortem CT (Int J Legal Med
  133:1861, 2019); they shift between scanners (Lamba et al., AJR 203:1013, 2014). The other tissues are not taken
  from one measurement;
- contrast phases: Goshima et al., AJR 187:W25 (2006), MDCT of the liver and hypervascular hepatocellular
  carcinomas. Above unenhanced, late arterial: aorta 300 HU and more, spleen 97-108, portal vein 75-104, liver
  15-25; portal venous: liver 59-63, aorta 117-125, spleen 73-82.

Between patients they vary; `ct` draws that spread.
"""

from __future__ import annotations

# HU at 120 kVp without contrast medium
UNENHANCED: dict[str, float] = {
    "air": -1000,
    "table": -250,
    "fat": -100,
    "muscle": 55,
    "lung": -830,
    "gas": -950,
    "heart": 42,
    "liver": 58,
    "spleen": 48,
    "pancreas": 42,
    "kidney_cortex": 34,
    "kidney_medulla": 30,
    "renal_pelvis": 6,
    "lesion": 36,
    "lesion_core": 24,
    "bile": 8,
    "stomach_wall": 40,
    "stomach_content": 18,
    "bowel_wall": 40,
    "bowel_fluid": 16,
    "stool": 10,
    "blood_artery": 42,
    "blood_vein": 42,
    "blood_portal": 42,
    "cortical_bone": 600,
    "cancellous_bone": 170,
    "disc": 80,
    "cerebrospinal_fluid": 8,
    "metal": 3000,
}

# HU that iodine adds in the portal venous phase at 120 kVp
PORTAL_VENOUS: dict[str, float] = {
    "muscle": 10,
    "heart": 105,
    "liver": 52,
    "spleen": 72,
    "pancreas": 52,
    "kidney_cortex": 150,
    "kidney_medulla": 115,
    "lesion": 22,
    "lesion_core": 6,
    "stomach_wall": 40,
    "bowel_wall": 45,
    "blood_artery": 112,
    "blood_vein": 98,
    "blood_portal": 122,
    "cancellous_bone": 6,
}

# HU that iodine adds in the late arterial phase, about 35 s after the injection, when hypervascular lesions
# stand out
LATE_ARTERIAL: dict[str, float] = {
    "muscle": 4,
    "heart": 230,
    "liver": 16,
    "spleen": 98,
    "pancreas": 62,
    "kidney_cortex": 145,
    "kidney_medulla": 35,
    "lesion": 78,
    "lesion_core": 40,
    "stomach_wall": 42,
    "bowel_wall": 45,
    "blood_artery": 300,
    "blood_vein": 25,
    "blood_portal": 80,
    "cancellous_bone": 4,
}

# How much of an oral contrast medium each part of the gut holds
ORALLY_FILLED: dict[str, float] = {"stomach_content": 1.0, "bowel_fluid": 0.8, "stool": 0.3}

# Lesions of other kinds than the source's solid, poorly enhancing ones. Unenhanced HU of cysts, which are nearly water:
CYSTS: dict[str, float] = {"lesion": 12, "lesion_core": 6}
# What iodine adds late arterially to hypervascular ones: they stand out by about 90 HU, which is much (chosen; for hepatocellular
# carcinomas 47 HU, SD 19, were measured at the best moment, PubMed 17329690)
HYPERVASCULAR: dict[str, float] = {"lesion": 126, "lesion_core": 90}
