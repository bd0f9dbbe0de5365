"""DICOM: reads image series, reads and writes segmentation objects (DICOM-SEG), writes structure
sets (RTSTRUCT). Needs the extra `dicom`.

pydicom reads headers and voxels, GDCM (in SimpleITK) decodes compressed voxels, and highdicom reads
and writes segmentations.
"""
