"""Convert Meta's Llama checkpoints to Hugging Face safetensors, in flat memory and with proof."""

__version__ = "0.1.0"
