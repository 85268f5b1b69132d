"""Speed against the challenge's and FuxiCTR's own way of doing the same: `python benchmarks/speed.py`."""
