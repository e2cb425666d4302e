"""What a checkpoint is: told from its headers in a moment; from one pass over its weights, their values."""

from llama_convert.inspection.compare import compare
from llama_convert.inspection.describe import inspect
from llama_convert.inspection.differences import Comparison
from llama_convert.inspection.model import Inspection

__all__ = ["Comparison", "Inspection", "compare", "inspect"]
