"""Kubernetes as the store: the only room that talks to an API server."""
