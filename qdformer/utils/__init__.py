"""What every room uses: errors, digests, files, archives, downloads, tables and the constants that all agree on."""
