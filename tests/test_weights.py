"""Checkpoints: every format and wrapping is read, nothing is run, and every misfit is one clear line."""

from __future__ import annotations

import argparse
import builtins
import json
import math
import pickle
import sys
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stream4d.errors import MissingDependencyError, WeightsError
from stream4d.models import hub
from stream4d.models.checkpoint import Checkpoint, parse_constructor, read_checkpoint
from stream4d.models.weights import KeyMap, fit, randomise


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return net().state_dict()


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text, text
    return text


@pytest.mark.parametrize("wrap", ["flat", "model", "state_dict", "nested", "safetensors", "legacy"])
def test_every_wrapping_gives_the_same_tensors(wrap, tensors, tmp_path):
    path = tmp_path / ("x.safetensors" if wrap == "safetensors" else "x.pth")
    if wrap == "safetensors":
        save_file(tensors, path)
    else:
        content = {
            "flat": tensors,
            "model": {"model": tensors, "args": argparse.Namespace(lr=0.1), "epoch": 3},
            "state_dict": {"state_dict": tensors, "hyper_parameters": {"a": 1}},
            "nested": {"model": {"state_dict": tensors}},
            "legacy": tensors,
        }[wrap]
        torch.save(content, path, _use_new_zipfile_serialization=wrap != "legacy")
    read = read_checkpoint(path)
    assert read.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(read.tensors[name], tensor)


def test_two_dictionaries_side_by_side_become_prefixes(tensors, tmp_path):
    path = tmp_path / "x.pth"
    args = argparse.Namespace(encoder="Enc(depth=2)", decoder="Dec(depth=4)")
    torch.save({"args": args, "encoder": tensors, "decoder": tensors}, path)
    read = read_checkpoint(path)
    assert set(read.tensors) == {f"{p}.{k}" for p in ("encoder", "decoder") for k in tensors}
    assert read.args == {"encoder": "Enc(depth=2)", "decoder": "Dec(depth=4)"}


def test_config_beside_safetensors_is_read(tensors, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"head_type": "dpt"}), encoding="utf-8")
    assert read_checkpoint(tmp_path / "model.safetensors").args == {"head_type": "dpt"}


class Evil:
    def __reduce__(self):
        return (builtins.eval, ("__import__('sys').modules.setdefault('owned', 1)",))


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_refused_and_not_run(zipped, tmp_path):
    path = tmp_path / "evil.pth"
    if zipped:
        torch.save({"model": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(WeightsError) as error:
        read_checkpoint(path)
    assert "refused" in one_line(error) or "not a" in one_line(error)
    assert "owned" not in sys.modules


def test_refusal_names_what_it_would_run(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"model": Evil()}, path)
    with pytest.raises(WeightsError, match=r"eval.*plain data"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.97])
def test_truncated_file(name, keep, tensors, tmp_path):
    path = tmp_path / name
    save_file(tensors, path) if name.endswith("safetensors") else torch.save(tensors, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(WeightsError, match="not a") as error:
        read_checkpoint(path)
    assert name in one_line(error)


def test_no_tensors(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"epoch": 3}, path)
    with pytest.raises(WeightsError, match="holds no tensors"):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="holds a list"):
        read_checkpoint(path)


def test_no_such_file(tmp_path):
    for source in (tmp_path / "none.pth", "weights/none.safetensors", "nothing"):
        with pytest.raises(WeightsError, match="no such file") as error:
            read_checkpoint(source)
        one_line(error)
    with pytest.raises(WeightsError, match="folder"):
        read_checkpoint(tmp_path)


def test_hub_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"stream4d\[hub\]") as error:
        read_checkpoint("owner/name")
    one_line(error)


def test_hub_failure_is_one_line(monkeypatch):
    import huggingface_hub

    def fail(*_args, **_kwargs):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(hub, "_why_hub_is_unreachable", lambda: None)
    with pytest.raises(WeightsError, match="no route to host") as error:
        read_checkpoint("owner/name")
    assert "owner/name" in one_line(error)


def test_hub_out_of_reach_is_said_at_once(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    started = time.monotonic()
    with pytest.raises(WeightsError, match="cannot reach the Hugging Face hub") as error:
        read_checkpoint("owner/name")
    assert "--weights" in one_line(error)
    assert time.monotonic() - started < 15


def test_hub_tries_the_usual_names(monkeypatch, tensors, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    torch.save(tensors, tmp_path / "model.pt")
    asked = []

    def download(repo, name, repo_type, local_files_only):
        asked.append((repo, name, repo_type))
        if name != "model.pt":
            raise EntryNotFoundError("404: no such entry")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "_why_hub_is_unreachable", lambda: None)
    assert read_checkpoint("owner/name").tensors.keys() == tensors.keys()
    kind = "model"
    assert asked == [("owner/name", n, kind) for n in ("model.safetensors", "model.pt")]
    read_checkpoint("datasets/owner/name:model.pt")
    assert asked[-1] == ("owner/name", "model.pt", "dataset")
    with pytest.raises(WeightsError, match=r"holds none of other\.pt"):
        read_checkpoint("owner/name:other.pt")


@pytest.mark.parametrize("has_config", [True, False])
def test_config_comes_with_safetensors_from_the_hub(has_config, monkeypatch, tensors, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    def download(repo, name, repo_type, local_files_only):
        if name == "model.safetensors":
            save_file(tensors, tmp_path / name)
        elif name == "config.json" and has_config:
            (tmp_path / name).write_text('{"img_size": [224, 224]}', encoding="utf-8")
        else:
            raise EntryNotFoundError("404")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "_why_hub_is_unreachable", lambda: None)
    read = read_checkpoint("owner/name")
    assert read.args == ({"img_size": [224, 224]} if has_config else {})


def test_arguments_are_data():
    text = (
        "Net(pos_embed='RoPE100', img_size=(512, 512), depth_mode=('exp', -inf, inf), "
        "landscape_only=False, head=Head(dim=3), pads=[1, None], extra={'a': 1.5})"
    )
    name, arguments = parse_constructor(text)
    assert name == "Net"
    assert arguments == {
        "pos_embed": "RoPE100",
        "img_size": (512, 512),
        "depth_mode": ("exp", -math.inf, math.inf),
        "landscape_only": False,
        "head": ("Head", {"dim": 3}),
        "pads": [1, None],
        "extra": {"a": 1.5},
    }


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "Net(a=open('x'))",
        "Net(a=b)",
        "Net(*x)",
        "Net(1)",
        "Net(a=1 + 1)",
        "(lambda: 1)()",
        "3",
        "Net(",
        "",
    ],
)
def test_arguments_that_are_not_data_are_refused(text):
    with pytest.raises(WeightsError):
        parse_constructor(text)


def load(tensors, **key_map):
    with torch.device("meta"):
        built = net()
    fit(built, Checkpoint(source="file.pth", tensors=tensors), KeyMap(**key_map), family="foo")
    return built


def test_fit_assigns_without_a_copy(tensors):
    built = load(tensors)
    assert built[0].weight.data_ptr() == tensors["0.weight"].data_ptr()
    assert not built[0].weight.requires_grad


def test_fit_renames_strips_and_ignores(tensors):
    public = {f"module.net.{k.replace('0.', 'first.')}": v for k, v in tensors.items()}
    public["module.net.mask_token"] = torch.zeros(1)
    built = load(
        public,
        prefixes=("module.", "net."),
        renames=((r"^first\.", "0."),),
        ignored=(r"mask_token$",),
    )
    assert torch.equal(built[0].weight, tensors["0.weight"])


def test_aliases_collapse(tensors):
    public = {**tensors, "alias.weight": tensors["0.weight"]}
    load(public, renames=((r"^alias\.", "0."),))
    public["alias.weight"] = tensors["0.weight"] + 1
    with pytest.raises(WeightsError, match="contradicts"):
        load(public, renames=((r"^alias\.", "0."),))


def test_misfit_names_missing_unexpected_and_misshapen(tensors):
    tensors = dict(tensors)
    del tensors["0.bias"]
    tensors["2.weight"] = torch.zeros(1)
    tensors["1.bias"] = torch.zeros(7)
    with pytest.raises(WeightsError) as error:
        load(tensors)
    assert one_line(error) == (
        "file.pth is not a foo checkpoint: 1 missing (0.bias); 1 unexpected (2.weight); "
        "1 misshapen (1.bias: (7,) in the file, (2,) in the network)"
    )


def test_another_familys_checkpoint_is_one_line(tmp_path):
    from stream4d.models.registry import create_model

    path = tmp_path / "other.safetensors"
    save_file({f"blocks.{i}.weight": torch.zeros(2) for i in range(500)}, path)
    with pytest.raises(WeightsError, match="is not a vggt checkpoint") as error:
        create_model("vggt", weights=path)
    assert len(one_line(error)) < 400


def test_random_weights_are_reproducible_and_sane():
    def build():
        with torch.device("meta"):
            built = nn.Sequential(nn.Linear(256, 64), nn.LayerNorm(64), nn.BatchNorm1d(64))
        randomise(built, seed=3)
        return built.eval()

    a, b = build(), build()
    x = torch.randn(100, 256)
    assert torch.equal(a(x), b(x))
    assert a[0](x).std() == pytest.approx(1.0, rel=0.2)


def test_unknown_option_names_the_nearest():
    from stream4d.errors import ModelError
    from stream4d.models.registry import create_model

    with pytest.raises(ModelError, match="Did you mean 'decoder_dim'"):
        create_model("dust3r", weights="random", decoder_dims=3)
    with pytest.raises(ModelError, match="precision must be one of"):
        create_model("dust3r", weights="random", precision="int8")


def test_licence_is_said_once(caplog):
    from stream4d.models import family
    from stream4d.models.registry import model_card

    family._announced.clear()
    for _ in range(3):
        family.announce_licence(model_card("dust3r"))
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 1
    assert "NON-COMMERCIAL" in messages[0]


def test_hub_pattern_does_not_eat_paths():
    assert hub.HUB_ID.match("naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt")
    assert not hub.HUB_ID.match("/a/b")
    assert not hub.HUB_ID.match("a/b/c")
    assert not hub.HUB_ID.match("../b")
