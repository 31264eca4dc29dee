"""MSSL (Qian et al., "Multiple Sound Sources Localization from Coarse to Fine", ECCV 2020, arXiv 2007.06355)."""
