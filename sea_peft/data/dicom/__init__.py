"""DICOM: image series in, segmentation objects (DICOM-SEG) in and out. Needs the extra `dicom`.

Headers and voxels are read by pydicom, compressed voxels decoded by GDCM (in SimpleITK), segmentations read and written by highdicom.
"""
