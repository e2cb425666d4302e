"""What a checkpoint is: told from its headers in a moment; from one pass over its weights, their values."""
