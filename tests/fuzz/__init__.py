"""Damaged and hostile input for the real commands, made by changing valid input.

`changes` says what a case is, `targets` what is run on it, `oracle` what must hold, `pool` who watches.
"""
