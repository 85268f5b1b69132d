"""The release that the solution was made with."""

import fuxictr

assert fuxictr.__version__ == "2.3.7"
