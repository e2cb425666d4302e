"""What a checkpoint is: told from its headers in a moment; from one pass over its weights, their values."""

from llama_convert.inspect.compare import compare
from llama_convert.inspect.describe import inspect
from llama_convert.inspect.differences import Comparison
from llama_convert.inspect.model import Inspection

__all__ = ["Comparison", "Inspection", "compare", "inspect"]
