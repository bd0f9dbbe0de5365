"""DICOM: image series in, segmentation objects (DICOM-SEG) in and out. Needs the extra `dicom`.

Headers are read by pydicom, voxels by GDCM (in SimpleITK, which also decodes compressed ones), segmentations by highdicom.
"""
