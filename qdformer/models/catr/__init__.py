"""CATR (Li et al., ACM MM 2023, arXiv 2309.09709): combinatorial audio-video fusion, audio-queried decoder."""
