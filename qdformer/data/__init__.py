"""Data sets on disk and in batches: `layout` writes them, `manifest` reads them, `checks` validates them."""
