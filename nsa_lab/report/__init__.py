"""What was found, on one page: ablations, comparisons, studies and analyses of runs, with where each number is from."""

from nsa_lab.report.page import write_page, write_results

__all__ = ["write_page", "write_results"]
