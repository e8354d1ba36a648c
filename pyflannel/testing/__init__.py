"""Importable fakes for tests."""
