"""Checkpoints by URL: object stores, the Hub, web servers; all by way of fsspec."""
