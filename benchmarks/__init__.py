"""Each benchmark prints ratios from one run. Figures worth keeping go to RESULTS.md, with machine, date and command."""
