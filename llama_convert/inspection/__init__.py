"""Describe a checkpoint from its headers, compute statistics of its tensors, compare two checkpoints."""
