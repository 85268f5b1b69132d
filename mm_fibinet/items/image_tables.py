"""Images that lie in one file of a data format: a parquet column of image files' bytes, or an HDF5 file of them."""

import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from mm_fibinet import schema
from mm_fibinet.errors import UserError, explain_os_error
from mm_fibinet.items import image_files
from mm_fibinet.items.contents import BadContent
from mm_fibinet.items.image_files import File, item_of, too_large, unusable

HDF5_SUFFIXES = (".h5", ".hdf5")
IMAGE_COLUMNS = ("image", "images", "cover", "img", "item_image")  # where several columns hold bytes
ROWS_AT_ONCE = 256  # of a parquet file: about 25 MB of covers


def parquet_files(path: Path) -> Iterator[File]:
    """The images of a parquet file with item_id and a column of bytes; null is no image.

    The column is of bytes, or a struct with `bytes` in it, as Hugging Face's data sets store images.

    Raises:
        UserError: there is no such column, or several and none of a usual name.
    """
    opened = schema.open_parquet(path)
    schema.require_columns(path, opened, [schema.ITEM_ID])
    column = _image_column(path, opened.schema_arrow)
    for first_row, arrays in schema.read_slices(path, [schema.ITEM_ID, column], ROWS_AT_ONCE):
        ids = schema.scalars(arrays[schema.ITEM_ID], path, schema.ITEM_ID, first_row).tolist()
        images = arrays[column]
        if pa.types.is_struct(images.type):
            images = images.flatten()[images.type.get_field_index("bytes")]
        for row, (item_id, image) in enumerate(zip(ids, images, strict=True), start=first_row):
            buffer = image.as_buffer() if image.is_valid else None
            if buffer is None or item_id == 0:  # 0 is the padding item
                continue
            name = f"{column} in row {row}"
            if buffer.size > image_files.MAX_IMAGE_BYTES:
                yield too_large(name, buffer.size, item_id)
            else:
                yield File(name, item_id, buffer.size, buffer.to_pybytes)


def _image_column(path: Path, found: pa.Schema) -> str:
    names = [name for name in found.names if _holds_bytes(found.field(name).type)]
    usual = [name for name in names if name.lower() in IMAGE_COLUMNS]
    if len(names) == 1 or len(usual) == 1:
        return (usual or names)[0]
    which = f"found {len(names)} such columns, {', '.join(names)}" if names else f"found {', '.join(found.names)}"
    raise UserError(
        f"{path}: expected one column of image files' bytes (binary, or a struct with bytes), named {IMAGE_COLUMNS[0]} "
        f"where there are several; {which}"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def hdf5_files(path: Path) -> Iterator[File]:
    """The images of an HDF5 file: data sets named ITEM_ID or ITEM_ID.jpg, in any group.

    A data set holds an image file's bytes (opaque, a string of bytes, or uint8 [n]) or the pixels (uint8 [H, W] or
    [H, W, 3 or 4]). Links to other files are not followed.

    Raises:
        UserError: not a complete HDF5 file.
    """
    import h5py

    try:
        opened = h5py.File(path, "r")
        found: list[tuple[str, Any]] = []
        opened.visititems(lambda name, node: found.append((name, node)) if isinstance(node, h5py.Dataset) else None)
    except Exception as error:  # h5py's for a damaged file are of every kind
        if isinstance(error, OSError) and error.errno:
            raise explain_os_error(error, path, "read") from error
        raise UserError(f"{path}: not a complete HDF5 file ({error}); download or write it again") from error
    for name, dataset in found:
        yield _hdf5_file(path, name, dataset)


def _hdf5_file(path: Path, name: str, dataset: Any) -> File:
    key = PurePosixPath(name).name
    item_id = int(key) if re.fullmatch("[0-9]{1,18}", key) else item_of(name)
    if item_id is None:
        return File(name, None, 0, bytes)
    if dataset.external or dataset.is_virtual:
        return unusable(name, "corrupt", "its bytes are in another file", item_id)
    if dataset.nbytes > image_files.MAX_IMAGE_BYTES:  # as it claims: nothing is read yet
        return too_large(name, dataset.nbytes, item_id)
    return File(name, item_id, dataset.nbytes, partial(_read_hdf5, path, dataset))


def _read_hdf5(path: Path, dataset: Any) -> bytes:
    try:
        value = dataset[()]
    except OSError as error:
        if error.errno:
            raise explain_os_error(error, path, "read") from error
        raise BadContent("corrupt", str(error)) from error
    except Exception as error:  # of damaged values, of every kind
        raise BadContent("corrupt", str(error) or type(error).__name__) from error
    if isinstance(value, bytes):
        data = value
    elif isinstance(value, np.void):  # opaque
        data = value.tobytes()
    elif isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (1, 2, 3):
        data = value.tobytes() if value.ndim == 1 else _png(value)
    else:
        found = f"{dataset.dtype} {list(dataset.shape or ())}"
        raise BadContent("corrupt", f"holds {found}, expected bytes, uint8 [n] or uint8 [height, width, 3]")
    if len(data) > image_files.MAX_IMAGE_BYTES:  # of a length that only the value tells
        too_large(dataset.name, len(data)).load()
    return data


def _png(pixels: np.ndarray) -> bytes:
    """Pixels as an image file without loss, so that they take the way of every other image."""
    from PIL import Image

    file = io.BytesIO()
    try:
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    except (TypeError, ValueError) as error:
        raise BadContent("corrupt", f"pixels of shape {list(pixels.shape)}, expected [height, width, 3]") from error
    return file.getvalue()
