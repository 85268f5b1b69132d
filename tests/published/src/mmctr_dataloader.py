"""The solution's loader: a row at a time, items looked up in pandas."""

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader


class MMCTRDataLoader(DataLoader):
    """Yields the challenge's triple."""

    def __init__(self, feature_map, data_path, item_info, batch_size=32, shuffle=False, max_len=100, **kwargs):
        frame = pd.read_parquet(data_path)
        collate = Collator(feature_map, pd.read_parquet(item_info), max_len)
        super().__init__(frame.to_dict("records"), batch_size=batch_size, shuffle=shuffle, collate_fn=collate)
        self.num_samples, self.num_blocks, self.num_batches = len(frame), 1, len(self)


class Collator:
    """Rows to a batch."""

    def __init__(self, feature_map, items, max_len):
        self.columns = {*feature_map.features, *feature_map.labels}
        self.items = items
        self.max_len = max_len

    def __call__(self, rows):
        history = np.stack([row["item_seq"][-self.max_len :] for row in rows])
        index = np.concatenate([history, [[row["item_id"]] for row in rows]], axis=1)
        own = self.columns & set(rows[0]) - {"item_seq", "item_id"}
        found = self.items.iloc[index.ravel()]
        item_dict = {name: torch.tensor(np.stack(found[name])) for name in found.columns if name in self.columns}
        batch_dict = {name: torch.tensor([row[name] for row in rows]) for name in own}
        return batch_dict, item_dict, torch.tensor(history > 0).float()
