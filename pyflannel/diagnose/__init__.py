"""What is wrong with a whole node: facts are gathered, checks judge them, findings are told."""
