"""A cluster in a box, made of network namespaces."""
