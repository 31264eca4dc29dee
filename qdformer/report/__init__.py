"""The report of a result: one HTML page that needs nothing else, with clips that play with their sound."""
