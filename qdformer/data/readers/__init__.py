"""The data sets: AVSBench as published, and the composed sets `stamps` and `toy`."""
