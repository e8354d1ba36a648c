"""Who owns which subnet."""
