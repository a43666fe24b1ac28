"""Shards in a bucket, through s3fs, against moto's server on the loopback address."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino.data import remote, remote_requests
from dino.data.decode import read_image
from dino.data.image_source import ImageSource
from dino.data.packing import Packing, pack_images
from dino.data.remote_requests import Unreachable
from dino.data.sources import open_training_source
from dino.errors import DataError
from tests.range_server import serve

WANTED = "s3fs and moto are missing: make test-s3"
boto3 = pytest.importorskip("boto3", reason=WANTED)
s3fs = pytest.importorskip("s3fs", reason=WANTED)
moto = pytest.importorskip("moto.server", reason=WANTED)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 images of noise in two shards."""
    root, rng = tmp_path_factory.mktemp("images") / "train", np.random.default_rng(0)
    root.mkdir()
    for number in range(7):
        noise = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"{number:02}.png")
    out = tmp_path_factory.mktemp("packed")
    assert len(list(pack_images(open_training_source(str(root)), out, Packing(4), workers=2))) == 2
    return out


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def forget_connections() -> None:
    """What this process knows of a store that an earlier test asked."""
    remote._ahead.cache_clear()
    remote_requests._open_files.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(
    packed: Path, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator["boto3.client"]:
    """A client of the store, which has a bucket with the shards."""
    for name, text in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "DINO_CACHE_DIR": str(tmp_path / "cache"),
        "DINO_CACHE_LIMIT": "0",
    }.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(remote_requests, "PAUSE", 0.0)
    forget_connections()
    client = boto3.client("s3")
    client.create_bucket(Bucket="images")
    for path in packed.glob("*.tar"):
        client.upload_file(str(path), "images", f"set/{path.name}")
    return client


def assert_same_images(one: ImageSource, two: ImageSource) -> None:
    assert (one.names, one.labels) == (two.names, two.labels)
    for index in range(len(one)):
        assert torch.equal(read_image(one.file(index)), read_image(two.file(index)))


@pytest.mark.parametrize("name", ["train-{000000..000001}.tar", "*.tar"])
def test_a_bucket_is_the_shards_on_a_disk(name: str, packed: Path, bucket: "boto3.client") -> None:
    local = open_training_source(str(packed / name))
    far = open_training_source(f"s3://images/set/{name}")
    assert_same_images(far, local)
    assert far.fingerprint() == local.fingerprint()
    assert str(far.root) == "s3://images/set"


def test_an_object_that_changes_under_a_run_is_an_error(
    packed: Path, bucket: "boto3.client"
) -> None:
    far = open_training_source("s3://images/set/train-000001.tar")
    content = (packed / "train-000001.tar").read_bytes()
    changed = content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
    bucket.put_object(Bucket="images", Key="set/train-000001.tar", Body=changed)
    with pytest.raises(Unreachable, match=r"^s3://images/set/train-000001\.tar has changed"):
        read_image(far.file(0))


def test_an_object_or_a_bucket_that_is_missing_is_named_at_once(bucket: "boto3.client") -> None:
    for url in ("s3://images/set/train-000002.tar", "s3://nowhere/a.tar"):
        with pytest.raises(
            DataError, match=rf"^{url} cannot be read: (it does not exist|HTTP 404 Not Found)$"
        ):
            open_training_source(url)


def test_a_store_that_errs_is_asked_again_and_ends_in_one_line(
    bucket: "boto3.client", packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads of the protocol are plain ranged ones, so a web server stands for a store that errs."""
    shutil.copytree(packed, tmp_path / "images" / "set")
    monkeypatch.setattr(remote_requests, "PATIENCE", 5.0)
    with serve(tmp_path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        forget_connections()
        far = open_training_source("s3://images/set/train-000000.tar")
        server.faults += [503, "cut"]
        local = open_training_source(str(packed / "train-000000.tar"))
        assert torch.equal(read_image(far.file(0)), read_image(local.file(0)))
        server.faults[:] = [403]
        with pytest.raises(Unreachable, match="cannot be read: HTTP 403") as caught:
            read_image(far.file(1))
        assert "\n" not in str(caught.value)
