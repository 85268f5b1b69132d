"""One data set written twice: histories in the rows, and histories once a user in user_info.

The row form is made of the users' sequences a row at a time, by slices of Python lists.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import NUM_ITEMS, list_column, make_dataset

USERS, LONGEST = 50, 20
FEATURES = """
        - {name: age, type: numeric, source: user, fill_na: 33}
        - {name: country, type: categorical, source: user}
        - {name: interests, type: sequence, source: user}
        - {name: taste, type: embedding, source: user}
"""
FORMS = ("rows", "users")


def make_forms(folder: Path, ends: bool = True, rows: int = 600, seed: int = 0) -> dict[str, Path]:
    """Write the data of `conftest.make_dataset` with histories of its users, in both forms.

    Args:
        ends: rows see a part of their user's sequence; otherwise the whole one, and there is no column history_end.

    Returns:
        {form: config folder}; the files are in FORM/TEST_DATA beside it.
    """
    configs = {}
    for form in FORMS:
        configs[form] = make_dataset(folder / form, rows, seed)
        rng = np.random.default_rng(seed + 1)  # the same for both
        lengths = rng.permutation(np.arange(USERS) % (LONGEST + 1))
        sequences = [rng.integers(1, NUM_ITEMS, length).tolist() for length in lengths]
        columns = {
            "age": pa.array([None if user % 7 == 0 else float(user) for user in range(USERS)]),
            "country": pa.array(rng.integers(0, 5, USERS)),
            "interests": list_column(rng.integers(0, 6, (USERS, 3))),
            "taste": list_column(rng.normal(size=(USERS, 4)).astype(np.float32)),
        }
        data = folder / form / "TEST_DATA"
        for name in ("train", "valid", "test"):
            table = pq.read_table(data / f"{name}.parquet").drop_columns("item_seq")
            user = rng.integers(0, USERS, table.num_rows)
            user[:2] = [lengths.argmax(), lengths.argmin()]
            end = rng.integers(0, lengths[user] + 1) if ends else lengths[user]
            end[:2] = lengths[user[:2]]
            table = table.set_column(table.column_names.index("user_id"), "user_id", pa.array(user))
            if form == "users":
                table = table.append_column("history_end", pa.array(end)) if ends else table
            else:
                before = [sequences[u][:e] for u, e in zip(user, end, strict=True)]
                padded = np.array([[0] * (LONGEST - len(items)) + items for items in before])
                table = table.append_column("item_seq", list_column(padded))
                for feature, values in columns.items():
                    table = table.append_column(feature, values.take(pa.array(user)))
            pq.write_table(table, data / f"{name}.parquet")
        config = configs[form] / "dataset_config.yaml"
        text = config.read_text().replace("    label_col:", f"{FEATURES}    label_col:")
        if form == "users":
            users = {"user_id": np.arange(USERS), "item_seq": pa.array(sequences, pa.list_(pa.int32())), **columns}
            pq.write_table(pa.table(users), data / "user_info.parquet")
            text = text.replace("    feature_cols:", f"    user_info: {data}/user_info.parquet\n    feature_cols:")
        config.write_text(text)
    return configs
