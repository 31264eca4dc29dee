"""Typed settings, one module per section of `params.yaml`; `settings` puts them together and reads the file."""
