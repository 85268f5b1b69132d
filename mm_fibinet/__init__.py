"""MM-FiBiNET's library: from raw titles and covers to a scored submission.

Imports run one way: scripts -> model_zoo -> mm_fibinet -> libraries. Nothing in this package imports model_zoo.
"""

__version__ = "0.2.0"
