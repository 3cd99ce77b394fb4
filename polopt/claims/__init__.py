"""The evidence: for every method a claim of its paper as code, one file a method, run by `polopt verify`.

A claim's file, `claims/<family>/<key>.py`, holds a function `run(seeds)` that gives numbers for every side on the same seeds, and a
`CLAIM` that says what must hold of them. Choose thresholds before the seeds 0, 1, ... are looked at: `polopt verify KEY --pilot` runs a
claim on other seeds and stores nothing. Baselines keep the defaults of their own papers or better. A claim that fails keeps its
thresholds and gets an `analysis`.
"""
