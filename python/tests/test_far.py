"""Real consumers over far files: zipfile over HTTP and S3, PIL, numpy."""

import functools
import io
import random
import zipfile

import nearfile
import numpy
import PIL.Image
import pytest
from common import Http, noise, run_children, s3_server, serving


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A zip with text, noise, an image and an array."""
    root = tmp_path_factory.mktemp("far")
    rng = random.Random(5)
    image, array = io.BytesIO(), io.BytesIO()
    PIL.Image.frombytes("RGB", (300, 200), noise(180_000)).save(image, "PNG")
    numpy.save(array, numpy.arange(30_000.0).reshape(300, 100))
    with zipfile.ZipFile(root / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(150):
            archive.writestr(f"noise {number}", rng.randbytes(rng.randrange(30_000)))
            archive.writestr(f"text {number}", f"{number}, " * rng.randrange(30_000))
        archive.writestr("image.png", image.getvalue())
        archive.writestr("array.npy", array.getvalue())
    (root / "image.png").write_bytes(image.getvalue())
    (root / "array.npy").write_bytes(array.getvalue())
    return root


def pages_of(ranges, page_size):
    return sorted(page for first, last in ranges for page in range(first // page_size, last // page_size + 1))


def read_zip(file, seed, with_image=True):
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        random.Random(seed).shuffle(names)
        for name in names:
            assert archive.read(name) is not None
        with archive.open("array.npy") as member:
            assert numpy.load(member)[299, 99] == 29_999
        with archive.open("image.png") as member, PIL.Image.open(member) as image:
            assert image.tobytes() == noise(180_000)
    return True


def test_zip_over_http(cache, root):
    with serving(root) as server:
        with cache.open(Http(f"{server.url}/data.zip"), key=f"{server.url}/data.zip", version='"1"') as file:
            assert file.size == (root / "data.zip").stat().st_size
            read_zip(file, 1)
            asked = [one for one in server.ranges if one != (0, 0)]
            assert pages_of(asked, 4096) == [*range((file.size + 4095) // 4096)]
            before = len(server.ranges)
            read_zip(io.BufferedReader(file.dup(), 1 << 16), 2)
        with cache.open(Http("http://nobody/there"), key=f"{server.url}/data.zip", version='"1"', size=file.size) as file:
            read_zip(file, 3)
        assert len(server.ranges) == before


def test_eight_forked_workers_over_http(cache, root):
    with serving(root) as server, cache.open(Http(f"{server.url}/data.zip")) as file:
        run_children([functools.partial(read_zip, file, seed) for seed in range(8)])
        asked = [one for one in server.ranges if one != (0, 0)]
        assert pages_of(asked, 4096) == [*range((file.size + 4095) // 4096)]


def test_images_and_arrays_over_http(cache, root):
    with serving(root) as server:
        with cache.open(Http(f"{server.url}/image.png")) as file, PIL.Image.open(file) as image:
            assert image.size == (300, 200) and image.tobytes() == noise(180_000)
        with cache.open(Http(f"{server.url}/array.npy")) as file:
            assert (numpy.load(file) == numpy.arange(30_000.0).reshape(300, 100)).all()
            column = numpy.empty(100)
            assert file.pread_into(column, file.size - 800) == 800 and column[0] == 29_900


class S3:
    """An object of a bucket. Can be pickled; each connection is a client of its own."""

    def __init__(self, endpoint, bucket, key):
        self.place = endpoint, bucket, key

    def open(self):
        import boto3

        endpoint, bucket, key = self.place
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        return S3Connection(boto3.session.Session().client("s3", endpoint_url=endpoint, **keys), bucket, key)


class S3Connection:
    def __init__(self, client, bucket, key):
        self.client, self.object = client, {"Bucket": bucket, "Key": key}

    def size(self):
        return self.client.head_object(**self.object)["ContentLength"]

    def version(self):
        return self.client.head_object(**self.object)["ETag"]

    def read_at(self, offset, size):
        return self.client.get_object(**self.object, Range=f"bytes={offset}-{offset + size - 1}")["Body"].read()

    def close(self):
        self.client.close()


def test_zip_over_s3(cache, root, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with s3_server() as endpoint:
        source = S3(endpoint, "bucket", "dir/data.zip")
        connection = source.open()
        connection.client.create_bucket(Bucket="bucket")
        connection.client.put_object(Bucket="bucket", Key="dir/data.zip", Body=(root / "data.zip").read_bytes())
        options = {"key": "s3://bucket/dir/data.zip", "version": connection.version(), "page_size": 1 << 16}
        with cache.open(source, **options) as file:
            read_zip(file, 1)
            stats = file.stats()
            assert stats.pages_fetched == stats.cached_pages == (file.size + 65535) // 65536
            before = stats.source_reads
            read_zip(file.dup(), 2)
            assert file.stats().source_reads == before
        # Another version under the same key.
        connection.client.put_object(Bucket="bucket", Key="dir/data.zip", Body=(root / "image.png").read_bytes())
        with cache.open(source, **{**options, "version": connection.version()}) as file:
            assert file.read() == (root / "image.png").read_bytes()
        error = None
        with cache.open(S3(endpoint, "bucket", "gone"), size=10) as file:
            try:
                file.read()
            except connection.client.exceptions.ClientError as raised:
                error = raised
        assert type(error).__name__ == "NoSuchKey"
        connection.close()
