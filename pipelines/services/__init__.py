"""The services that stay up: Prefect's server and worker, MLflow's server, and a watch over the runs.

`supervisor` keeps them: it is small, pure Python, restarts what crashed with back-off, and needs no rights and no
daemon of the system, unlike systemd and Docker.
"""
