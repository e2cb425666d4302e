"""A verification as one page to show: HTML with its plots inside it, without scripts and without a network.

matplotlib draws each plot twice, for wide and for narrow screens, in colours that are only names; the page's
style sheet says what they are, by day, by night and on paper.
"""

from llama_convert.verification.html_report.write import is_page, render_page

__all__ = ["is_page", "render_page"]
