"""Weights load from every file that holds them, and a file that does not is named for what it is."""

import io
import os
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mm_fibinet.checkpoint import RunCheckpoints, load_weights, save_weights
from mm_fibinet.errors import UserError


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.fixture
def state():
    """The state dict that every file here is to hold."""
    return make_model(1).state_dict()


def refusal(path) -> str:
    """What is said when the file is loaded; the model keeps its weights."""
    model = make_model(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as refused:
        load_weights(model, path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def saved(content, tmp_path):
    torch.save(content, tmp_path / "some.model")
    return tmp_path / "some.model"


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


FORMS = {
    "plain": lambda state: state,
    "DistributedDataParallel": lambda state: prefixed(state, "module."),
    "torch.compile": lambda state: prefixed(state, "_orig_mod."),
    "compiled, then parallel": lambda state: prefixed(state, "module._orig_mod."),
    "parallel, then compiled": lambda state: prefixed(state, "_orig_mod.module."),
    "a compiled part": lambda state: {name.replace(".", "._orig_mod.", 1): value for name, value in state.items()},
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": prefixed(state, "module."), "optimizer": {"lr": 0.1}, "best": torch.ones(1)},
    "model_state_dict": lambda state: {"model_state_dict": state},
    "parameters": lambda state: {name: nn.Parameter(v) if v.is_floating_point() else v for name, v in state.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_that_load(form, state, tmp_path):
    model = make_model(2)
    load_weights(model, saved(FORMS[form](state), tmp_path))
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_prefix_that_is_the_models_own_stays(tmp_path):
    model, other = (nn.ModuleDict({"module": make_model(seed)}) for seed in (1, 2))
    save_weights(model, tmp_path / "w.model")
    load_weights(other, tmp_path / "w.model")
    assert torch.equal(model["module"][0].weight, other["module"][0].weight)


def test_safetensors_load(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    model = make_model(2)
    load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    whole = (tmp_path / "w.safetensors").read_bytes()
    for content in (whole[:-3], whole[:40], whole.replace(b'"F32"', b'"F99"')):
        (tmp_path / "w.safetensors").write_bytes(content)
        assert refusal(tmp_path / "w.safetensors").startswith("not a complete safetensors file (")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_and_the_log_says_so(dtype, state, tmp_path, caplog):
    model = make_model(2)
    other = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    load_weights(model, saved(other, tmp_path))
    for name, value in model.state_dict().items():
        assert value.dtype == state[name].dtype and torch.equal(value, other[name].to(value.dtype))
    assert f"weights of type {str(dtype)[6:]} are converted" in caplog.text


BYTES = {
    "a page": (b"\n<!DOCTYPE html><title>Sign in</title>", "this is an HTML page"),
    "a page of old": (b"<HTML><body>404</body>", "this is an HTML page"),
    "a refused download": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "this is an XML page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "this is a pointer of git-lfs; fetch"),
    "parquet": (b"PAR1\x15\x04\x15", "this is a parquet file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "this is an HDF5 file"),
    "gzip": (b"\x1f\x8b\x08\x00", "this is compressed by gzip; unpack it"),
    "empty": (b"", "the file is empty"),
    "text": (b"hello world", "not a complete checkpoint file"),
    "zeros": (bytes(64), "not a checkpoint file"),
}


@pytest.mark.parametrize("case", BYTES)
def test_what_comes_in_a_checkpoints_place(case, tmp_path):
    content, expected = BYTES[case]
    (tmp_path / "some.model").write_bytes(content)
    assert refusal(tmp_path / "some.model").startswith(expected)


def test_other_zips(state, tmp_path):
    path = tmp_path / "some.model"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.bin", b"1234")
    assert refusal(path).startswith("this is a zip file, but not one of torch")
    whole = io.BytesIO()
    torch.save({"big": torch.zeros(1 << 20)}, whole)
    with zipfile.ZipFile(whole) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member))
    assert path.stat().st_size < 10_000
    assert refusal(path).startswith("not a checkpoint of torch: it would unpack to more bytes")
    saved(state, tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    assert refusal(path).startswith("not a complete checkpoint file")


def test_a_changed_byte_is_noticed(state, tmp_path):
    """Torch reads past its own checksums: one flipped bit would be another weight, and no word said."""
    path = saved(state, tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(state["0.weight"].numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    changed = torch.load(path, weights_only=True)
    assert (changed["0.weight"] != state["0.weight"]).sum() == 1
    assert "the file is damaged" in refusal(path)


def test_weights_without_checksums_load(state, tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(state, tmp_path)
    finally:
        torch.serialization.set_crc32_options(before)
    model = make_model(2)
    load_weights(model, path)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_folder_a_device_and_nothing(tmp_path):
    assert refusal(tmp_path).startswith("this is no file; name the .model file in it")
    assert refusal("/dev/zero").startswith("this is no file")
    assert refusal(tmp_path / "none.model").startswith("no such checkpoint")


def test_the_state_of_a_run_is_no_weights(state, tmp_path):
    RunCheckpoints(tmp_path, "this run").save({"model": state})
    assert refusal(tmp_path / "last.ckpt").startswith(
        "a run's state to --resume from, not weights; use the EXPID.model"
    )


def sparse(values):
    return values.to_sparse()


def quantized(values):
    return torch.quantize_per_tensor(values, 0.1, 0, torch.qint8)


KINDS = {
    "sparse": (sparse, "0.weight is a sparse tensor"),
    "quantized": (quantized, "0.weight is a quantized tensor"),
    "meta": (lambda values: values.to("meta"), "0.weight is a meta (without values) tensor"),
    "complex": (lambda values: values.to(torch.complex64), "0.weight is a complex tensor"),
    "float8": (lambda values: values.to(torch.float8_e5m2), "0.weight is a float8_e5m2 tensor"),
    "integers": (lambda values: values.to(torch.int64), "0.weight has type int64, expected float32"),
    "booleans": (lambda values: values > 0, "0.weight has type bool, expected float32"),
    "NaN": (lambda values: values.where(values > 0, torch.nan), "0.weight has NaN or infinity"),
    "infinity": (lambda values: values / 0, "0.weight has NaN or infinity"),
    "beyond float32": (lambda values: values.double() * 1e300, "0.weight has NaN or infinity"),
    "another shape": (lambda values: values.T, "another configuration: 0.weight has shape [3, 4], expected [4, 3];"),
    "a list": (lambda values: values.tolist(), "not a model's weights: '0.weight' is of type list, expected names"),
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_are_no_weights(kind, state, tmp_path):
    change, expected = KINDS[kind]
    state["0.weight"] = change(state["0.weight"])
    assert expected in refusal(saved(state, tmp_path))


def test_names_that_do_not_fit(state, tmp_path):
    twice = {**state, **prefixed(state, "module.")}
    assert "0.weight is there twice, once as module.0.weight" in refusal(saved(twice, tmp_path))
    bias = state.pop("0.bias")
    assert "0.bias is missing; use the config" in refusal(saved(state, tmp_path))
    assert "0.bias is missing (and 1 more)" in refusal(saved({**state, "b": bias}, tmp_path))
    for content in ({1: bias}, {}, [bias], bias, "text", {"model": {}}):
        assert "not a model's weights" in refusal(saved(content, tmp_path))


def test_a_wrapper_around_itself_ends(tmp_path):
    content = {"epoch": 1}
    content["model"] = content
    assert "not a model's weights" in refusal(saved(content, tmp_path))


class Trap:
    """Unpickled by pickle, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_run(state, tmp_path):
    trap = tmp_path / "trap"
    state["0.weight"] = Trap(trap)
    assert refusal(saved(state, tmp_path)).startswith("holds more than tensors and plain values, which is not loaded")
    assert not trap.exists()
