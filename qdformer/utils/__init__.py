"""Shared by all rooms: errors, digests, atomic files, archives, downloads, tables and common constants."""
