"""VGGish embeddings of clips, one per video frame, and the HDF5 file that holds them."""
