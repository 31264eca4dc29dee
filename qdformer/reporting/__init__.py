"""What a result looks like: figures, the page of a result, and the page of the data checks."""
