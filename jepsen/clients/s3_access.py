"""Access keys and boto3 clients for the S3 suites."""

import json
import os
import subprocess

import boto3
from botocore.config import Config

from harness import BINARY


def new_key(node, *flags):
    """An access key of the cluster, made by the command line."""
    environment = {**os.environ, "LEADLINE_ADMIN_ADDRESS": f"127.0.0.1:{node.admin}"}
    command = [BINARY, "s3", "key", "create", "--name", "test", "--json", *flags]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    key = json.loads(made.stdout)
    return key["access_key"], key["secret_key"]


def client(node, key, retries=8):
    """A boto3 client of one node, which sends a request that failed up to `retries` times again."""
    config = Config(
        s3={"addressing_style": "path"},
        signature_version="s3v4",
        retries={"max_attempts": retries, "mode": "standard"},
        connect_timeout=5,
        read_timeout=30,
        max_pool_connections=64,
    )
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{node.s3}",
        aws_access_key_id=key[0],
        aws_secret_access_key=key[1],
        region_name="us-east-1",
        config=config,
    )
