"""Which plots a verification has."""

from __future__ import annotations

from llama_convert.verification.html_report.drawing import Plot, style
from llama_convert.verification.html_report.logits_plots import kl_plot, layers_plot
from llama_convert.verification.html_report.norms_plot import norms_plot
from llama_convert.verification.html_report.weights_plot import weights_plot
from llama_convert.verification.report import Check, VerifyReport

PLOTS = {
    (Check.VALUES, "norms"): norms_plot,
    (Check.WEIGHTS, "tensors"): weights_plot,
    (Check.LOGITS, "layers"): layers_plot,
    (Check.LOGITS, "kl"): kl_plot,
}
"""By level, and the measures without which there is none."""


def plots(report: VerifyReport) -> list[Plot]:
    """A plot for each of the measures that there are."""
    with style():
        return [
            draw(level)
            for level in report.checks
            for (of, measure), draw in PLOTS.items()
            if level.check is of and level.measures.get(measure)
        ]
