"""Evidence that a checkpoint is right, the cheapest first; what is wrong with it, by name."""
