"""Go's rules, as upstream's users write by them: command lines, JSON, regular expressions."""
