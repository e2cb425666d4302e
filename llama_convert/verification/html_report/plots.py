"""Which plots a verification has."""

from __future__ import annotations

from llama_convert.verification.html_report.drawing import Plot, style
from llama_convert.verification.html_report.logits_plots import kl_plot, layers_plot
from llama_convert.verification.html_report.norms_plot import norms_plot
from llama_convert.verification.html_report.weights_plot import weights_plot
from llama_convert.verification.report import Level, VerifyReport

PLOTS = {
    (Level.VALUES, "norms"): norms_plot,
    (Level.WEIGHTS, "tensors"): weights_plot,
    (Level.LOGITS, "layers"): layers_plot,
    (Level.LOGITS, "kl"): kl_plot,
}
"""By level, and the measures without which there is none."""


def plots(report: VerifyReport) -> list[Plot]:
    """A plot for each of the measures that there are."""
    with style():
        return [
            draw(level)
            for level in report.levels
            for (of, measure), draw in PLOTS.items()
            if level.level is of and level.measures.get(measure)
        ]
