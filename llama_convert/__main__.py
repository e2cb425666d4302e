"""``python -m llama_convert``."""

from llama_convert.cli import main

main()
