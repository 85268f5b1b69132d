"""Titles, tags and covers -> item_emb_d128 in item_info.parquet (challenge task 1)."""
