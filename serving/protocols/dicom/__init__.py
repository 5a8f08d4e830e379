"""DICOM structured reports (PS3.3, A.35) of what a model says of DICOM images, by highdicom, an extra."""
