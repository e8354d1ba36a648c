"""Docker as this node has it: its options, its unit and drop-ins, what keeps it out."""
