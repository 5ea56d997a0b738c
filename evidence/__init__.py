"""What goes beyond the assignment: repeated seeds, latent sizes, the quality of samples, speed, and the pages' numbers.

`python -m evidence` makes all that REPORT.md rests on, `python -m evidence.benchmark` the tables of speed. It stands on
the rest of the bundle, which works without this folder.
"""

import drawing  # noqa: F401 (before anything here imports matplotlib)
