"""Remote checkpoints: object stores, the Hugging Face Hub and web servers, all through fsspec."""
