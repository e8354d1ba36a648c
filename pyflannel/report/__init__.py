"""What a node says about itself: records, what is wrong in them, and how both are shown."""
