"""boto3, aws-cli, s3cmd and rclone against one node: upload, large files, ranges, sync, list, delete.

Names on the command line are the tools to run; without one, all.
"""

import concurrent.futures
import filecmp
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

from boto3.s3.transfer import TransferConfig

from harness import directory, main, one_node
from s3_access import client, new_key

# Small files of the sync, and the size of the large one; the whole bars are LEADLINE_S3_FULL=1.
FULL = os.environ.get("LEADLINE_S3_FULL") == "1"
FILES = 10_000 if FULL else 300
LARGE = (1 << 30) if FULL else (40 << 20)
PATIENCE = 900 if FULL else 200


def tool(name):
    beside = pathlib.Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


class Tool:
    """A command line tool with its own settings."""

    def __init__(self, command, environment):
        # What whoever calls has set for AWS is not for this server.
        others = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.command, self.environment = command, {**others, **environment}

    def __call__(self, *arguments, check=True):
        command = [*self.command, *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command[:4])}: {done.stdout[-300:]}{done.stderr[-600:]}")
        return done


def files(path):
    """Small files in a tree, some with difficult names."""
    for number in range(FILES):
        folder = path / f"d{number % 10}" / "é ü"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f {number}+%.txt").write_bytes(os.urandom(number % 5000))
    return path


def same_trees(a, b):
    compared = filecmp.dircmp(a, b)
    return not (compared.left_only or compared.right_only or compared.diff_files) and all(
        same_trees(os.path.join(a, name), os.path.join(b, name)) for name in compared.common_dirs
    )


def boto(checks, node, key, tree, large):
    home = directory()
    s3 = client(node, key)
    s3.create_bucket(Bucket="boto")
    parts = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=16 << 20, max_concurrency=8)
    s3.upload_file(str(large), "boto", "large", Config=parts)
    head = s3.head_object(Bucket="boto", Key="large")
    checks.that("boto3: it was uploaded in parts", head["ETag"].endswith(f'-{-(-LARGE // (16 << 20))}"'), head["ETag"])
    s3.download_file("boto", "large", str(home / "large"), Config=parts)
    checks.that("boto3: a large file there and back", filecmp.cmp(large, home / "large", shallow=False))
    with open(large, "rb") as file:
        for at in (0, (16 << 20) - 5, LARGE - 10):
            file.seek(at)
            got = s3.get_object(Bucket="boto", Key="large", Range=f"bytes={at}-{at + 9}")
            checks.equal(f"boto3: a range at {at}", got["Body"].read(), file.read(10))
    names = {str(path.relative_to(tree)): path for path in tree.rglob("*") if path.is_file()}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        put = lambda name: s3.put_object(Bucket="boto", Key=f"tree/{name}", Body=names[name].read_bytes())
        list(pool.map(put, names))
        get = lambda name: s3.get_object(Bucket="boto", Key=f"tree/{name}")["Body"].read() == names[name].read_bytes()
        checks.equal("boto3: a tree there and back", list(pool.map(get, names)).count(True), FILES)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="boto", Prefix="tree/")
    listed = {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}
    expected = {f"tree/{name}": path.stat().st_size for name, path in names.items()}
    checks.that("boto3: all are listed with their sizes", listed == expected, len(listed))
    left = ["large", *listed]
    for at in range(0, len(left), 1000):
        some = [{"Key": name} for name in left[at : at + 1000]]
        errors = s3.delete_objects(Bucket="boto", Delete={"Objects": some, "Quiet": True}).get("Errors", [])
        checks.equal(f"boto3: objects from {at} are deleted", errors, [])
    s3.delete_bucket(Bucket="boto")


def aws_cli(checks, node, key, tree, large):
    home = directory()
    aws = Tool(
        [tool("aws"), "--endpoint-url", f"http://127.0.0.1:{node.s3}"],
        {
            "AWS_ACCESS_KEY_ID": key[0],
            "AWS_SECRET_ACCESS_KEY": key[1],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": str(home / "config"),
            "AWS_EC2_METADATA_DISABLED": "true",
        },
    )
    aws("s3", "mb", "s3://aws-cli")
    aws("s3", "cp", large, "s3://aws-cli/large")
    aws("s3", "cp", "s3://aws-cli/large", home / "large")
    checks.that("aws: a large file there and back", filecmp.cmp(large, home / "large", shallow=False))
    head = json.loads(aws("s3api", "head-object", "--bucket", "aws-cli", "--key", "large").stdout)
    checks.that("aws: it was uploaded in parts", "-" in head["ETag"], head)
    aws("s3", "sync", tree, "s3://aws-cli/tree")
    again = aws("s3", "sync", tree, "s3://aws-cli/tree").stdout
    checks.equal("aws: a second sync has nothing to do", again.strip(), "")
    aws("s3", "sync", "s3://aws-cli/tree", home / "tree")
    checks.that("aws: a tree there and back", same_trees(tree, home / "tree"))
    listed = aws("s3", "ls", "--recursive", "s3://aws-cli/tree").stdout.splitlines()
    checks.equal("aws: ls", len(listed), FILES)
    mixed = directory()
    (mixed / "empty").touch()
    (mixed / "parts").write_bytes(os.urandom(20 << 20))
    # An empty body on a connection that is used again: boto/botocore#3755.
    turns = [aws("s3", "sync", mixed, f"s3://aws-cli/mixed{turn}", check=False) for turn in range(8)]
    checks.equal("aws: an empty file beside one in parts", [turn.stderr for turn in turns if turn.returncode], [])
    aws("s3api", "get-object", "--bucket", "aws-cli", "--key", "large", "--range", "bytes=5-14", home / "range")
    checks.equal("aws: a range", (home / "range").stat().st_size, 10)
    aws("s3", "rm", "--recursive", "--quiet", "s3://aws-cli")
    aws("s3", "rb", "s3://aws-cli")
    checks.that("aws: all is deleted", True)


def s3cmd_tool(checks, node, key, tree, large):
    home = directory()
    settings = home / "s3cfg"
    settings.write_text(
        f"[default]\naccess_key = {key[0]}\nsecret_key = {key[1]}\nhost_base = 127.0.0.1:{node.s3}\n"
        f"host_bucket = 127.0.0.1:{node.s3}\nuse_https = False\nbucket_location = us-east-1\n"
    )
    s3cmd = Tool([tool("s3cmd"), "-c", str(settings), "--no-progress"], {})
    s3cmd("mb", "s3://s3cmd-bucket")
    s3cmd("put", large, "s3://s3cmd-bucket/large")
    s3cmd("get", "s3://s3cmd-bucket/large", home / "large")
    checks.that("s3cmd: a large file there and back", filecmp.cmp(large, home / "large", shallow=False))
    s3cmd("sync", f"{tree}/d1/", "s3://s3cmd-bucket/tree/")
    s3cmd("sync", "s3://s3cmd-bucket/tree/", f"{home}/tree/")
    checks.that("s3cmd: a tree there and back", same_trees(tree / "d1", home / "tree"))
    s3cmd("cp", "s3://s3cmd-bucket/large", "s3://s3cmd-bucket/copy")
    checks.that("s3cmd: ls", "copy" in s3cmd("ls", "s3://s3cmd-bucket/").stdout)
    s3cmd("setacl", "--acl-public", "s3://s3cmd-bucket/copy")
    checks.that("s3cmd: setacl", "anon" in s3cmd("info", "s3://s3cmd-bucket/copy").stdout.lower())
    s3cmd("del", "--recursive", "--force", "s3://s3cmd-bucket/")
    s3cmd("rb", "s3://s3cmd-bucket")
    checks.that("s3cmd: all is deleted", True)


def rclone_tool(checks, node, key, tree, large):
    home = directory()
    rclone = Tool(
        [tool("rclone"), "--config", str(home / "none")],
        {
            "RCLONE_CONFIG_L_TYPE": "s3",
            "RCLONE_CONFIG_L_PROVIDER": "Other",
            "RCLONE_CONFIG_L_ENDPOINT": f"http://127.0.0.1:{node.s3}",
            "RCLONE_CONFIG_L_ACCESS_KEY_ID": key[0],
            "RCLONE_CONFIG_L_SECRET_ACCESS_KEY": key[1],
            "RCLONE_CONFIG_L_REGION": "us-east-1",
        },
    )
    rclone("mkdir", "l:rclone")
    rclone("copy", large, "l:rclone/files", "--s3-upload-cutoff", "8M", "--s3-chunk-size", "5M")
    rclone("sync", tree, "l:rclone/tree", "--transfers", "16")
    clean = rclone("check", tree, "l:rclone/tree", "--download", check=False)
    checks.that("rclone: check is clean", clean.returncode == 0, clean.stderr[-500:])
    clean = rclone("check", large.parent, "l:rclone/files", "--include", large.name, "--download", check=False)
    checks.that("rclone: the large file too", clean.returncode == 0, clean.stderr[-500:])
    size = json.loads(rclone("size", "l:rclone", "--json").stdout)
    checks.equal("rclone: size", size["count"], FILES + 1)
    rclone("purge", "l:rclone")
    checks.that("rclone: purge", "rclone" not in rclone("lsd", "l:").stdout)


TOOLS = {"boto3": boto, "aws": aws_cli, "s3cmd": s3cmd_tool, "rclone": rclone_tool}


def run(checks):
    node = one_node()
    key = new_key(node, "--admin")
    tree = files(directory() / "tree")
    large = directory() / "large.bin"
    with open(large, "wb") as out:
        for _ in range(LARGE >> 20):
            out.write(os.urandom(1 << 20))
    for name in sys.argv[1:] or TOOLS:
        if name != "boto3" and not tool(name):
            checks.that(f"{name} is installed", False)
            continue
        began = time.monotonic()
        with checks.part(name, [node]):
            TOOLS[name](checks, node, key, tree, large)
        print(f"      {name}: {time.monotonic() - began:.0f} s", flush=True)
    left = [bucket["Name"] for bucket in client(node, key).list_buckets()["Buckets"]]
    checks.equal("no bucket is left", left, [])


main("s3_tools", 3600 if FULL else 230, run)
