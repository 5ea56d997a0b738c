"""What REPORT.md rests on beyond the runs of main.py, one file a question: `python -m evidence`.

It stands on the rest of the bundle, which works without this folder.
"""

from evidence import networks  # noqa: F401 (every process that imports a part of this folder has its wide network)
