"""Leases kept in etcd."""
