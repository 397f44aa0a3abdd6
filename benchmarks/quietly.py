"""Imported first by the fork server of the benchmarks, which imports the libraries before any of our code
runs.
"""

from stages.settings.stage import quiet

quiet()
