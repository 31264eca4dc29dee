"""A web page and a JSON API that segment uploaded videos, one at a time. Needs `fastapi`, of `qdformer[pipeline]`."""
