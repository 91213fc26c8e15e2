"""The formats between the stages: CheXpert, images, run-length masks, HDF5, decoded samples."""
