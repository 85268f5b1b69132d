"""A raw log and a catalogue to the files of the contract: what build_dataset.py runs."""
