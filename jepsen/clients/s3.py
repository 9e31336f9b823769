"""boto3 against one node and three: what the S3 API promises, seen by the AWS SDK."""

import base64
import concurrent.futures
import hashlib
import io
import json
import os
import urllib.error
import urllib.request
import zlib

from botocore.exceptions import ClientError

from harness import http_get, main, one_node, three_nodes
from s3_access import client, new_key


def code_of(call):
    """The error code of a call that fails, else None."""
    try:
        call()
    except ClientError as error:
        return error.response["Error"]["Code"]
    return None


def status_of(call):
    try:
        return call()["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]


def body(s3, bucket, key, **options):
    return s3.get_object(Bucket=bucket, Key=key, **options)["Body"].read()


def objects(checks, s3, bucket):
    """PUT, GET, HEAD, ranges, conditions, metadata, deletion."""
    for size in (0, 1, 4096, 16 << 10, (16 << 10) + 1, 1 << 20, (5 << 20) + 17):
        data = os.urandom(size)
        put = s3.put_object(Bucket=bucket, Key=f"size/{size}", Body=data)
        etag = '"' + hashlib.md5(data).hexdigest() + '"'
        got = s3.get_object(Bucket=bucket, Key=f"size/{size}")
        same = got["Body"].read() == data and put["ETag"] == etag == got["ETag"]
        checks.that(f"{size} bytes come back, with their MD5", same and got["ContentLength"] == size)
    data = os.urandom(3 << 20)
    s3.put_object(
        Bucket=bucket,
        Key="meta",
        Body=data,
        ContentType="text/x-test",
        CacheControl="no-cache",
        ContentDisposition="inline",
        ContentLanguage="de",
        Metadata={"color": "blue", "empty": ""},
        Tagging="a=1&b=2",
    )
    head = s3.head_object(Bucket=bucket, Key="meta")
    shown = head["ContentType"], head["CacheControl"], head["ContentLanguage"], head["Metadata"]["color"]
    checks.equal("headers and metadata are kept", shown, ("text/x-test", "no-cache", "de", "blue"))
    tags = s3.get_object_tagging(Bucket=bucket, Key="meta")["TagSet"]
    checks.equal("tags are kept", {tag["Key"]: tag["Value"] for tag in tags}, {"a": "1", "b": "2"})
    s3.delete_object_tagging(Bucket=bucket, Key="meta")
    checks.equal("tags go", s3.get_object_tagging(Bucket=bucket, Key="meta")["TagSet"], [])
    for spec, part in (
        ("bytes=0-9", data[:10]),
        ("bytes=1048570-1048590", data[1048570:1048591]),
        ("bytes=3145720-", data[3145720:]),
        ("bytes=-5", data[-5:]),
    ):
        got = s3.get_object(Bucket=bucket, Key="meta", Range=spec)
        checks.that(spec, got["Body"].read() == part and got["ResponseMetadata"]["HTTPStatusCode"] == 206)
    beyond = lambda: s3.get_object(Bucket=bucket, Key="meta", Range="bytes=99999999-")
    checks.equal("a range beyond the end", code_of(beyond), "InvalidRange")
    etag = head["ETag"]
    get = lambda **conditions: status_of(lambda: s3.get_object(Bucket=bucket, Key="meta", **conditions))
    checks.equal("GET If-Match", (get(IfMatch=etag), get(IfMatch='"no"')), (200, 412))
    checks.equal("GET If-None-Match", (get(IfNoneMatch=etag), get(IfNoneMatch='"no"')), (304, 200))
    modified = head["LastModified"]
    checks.equal("GET If-Modified-Since", get(IfModifiedSince=modified), 304)
    checks.equal("GET If-Unmodified-Since", get(IfUnmodifiedSince=modified), 200)
    put = lambda **conditions: status_of(lambda: s3.put_object(Bucket=bucket, Key="cond", Body=b"x", **conditions))
    checks.equal("PUT If-None-Match: *", (put(IfNoneMatch="*"), put(IfNoneMatch="*")), (200, 412))
    mine = s3.head_object(Bucket=bucket, Key="cond")["ETag"]
    checks.equal("PUT If-Match", (put(IfMatch='"no"'), put(IfMatch=mine)), (412, 200))
    checks.equal("GET of nothing", code_of(lambda: s3.get_object(Bucket=bucket, Key="nothing")), "NoSuchKey")
    checks.equal("HEAD of nothing", status_of(lambda: s3.head_object(Bucket=bucket, Key="nothing")), 404)
    many = [{"Key": f"many/{i}"} for i in range(300)]
    for item in many:
        s3.put_object(Bucket=bucket, Key=item["Key"], Body=b"x")
    gone = s3.delete_objects(Bucket=bucket, Delete={"Objects": many})["Deleted"]
    left = s3.list_objects_v2(Bucket=bucket, Prefix="many/")["KeyCount"]
    checks.equal("DeleteObjects", (len(gone), left), (300, 0))


def checksums(checks, s3, bucket):
    data = b"123456789" * 3000
    for algorithm in ("CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"):
        try:
            put = s3.put_object(Bucket=bucket, Key="sum", Body=data, ChecksumAlgorithm=algorithm)
        except Exception as error:  # noqa: BLE001: some algorithms need an extra of botocore
            if "crt" in str(error).lower():
                continue
            raise
        head = s3.head_object(Bucket=bucket, Key="sum", ChecksumMode="ENABLED")
        name = f"Checksum{algorithm}"
        checks.that(f"{algorithm} is stored and given back", put.get(name) and put[name] == head.get(name), head)
    crc = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    head = s3.put_object(Bucket=bucket, Key="sum", Body=data, ChecksumCRC32=crc)
    checks.equal("a checksum that the client computed", head["ChecksumCRC32"], crc)
    wrong = lambda: s3.put_object(Bucket=bucket, Key="bad", Body=data, ChecksumCRC32="AAAAAA==")
    checks.equal("a wrong checksum", code_of(wrong), "BadDigest")
    wrong = lambda: s3.put_object(Bucket=bucket, Key="bad", Body=data, ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg==")
    checks.equal("a wrong Content-MD5", code_of(wrong), "BadDigest")
    checks.equal("neither was stored", status_of(lambda: s3.head_object(Bucket=bucket, Key="bad")), 404)


def listings(checks, s3, bucket):
    keys = sorted(
        ["a", "a/b", "a/c/d", "b//c", "é", "z\U0001f600", "sp ace", "plus+", "per%cent", "a\u0301"],
        key=lambda key: key.encode(),
    )
    for key in keys:
        s3.put_object(Bucket=bucket, Key=f"list/{key}", Body=b"x")
    found = []
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="list/", PaginationConfig={"PageSize": 3}):
        found += [item["Key"][5:] for item in page.get("Contents", [])]
    checks.equal("pages are in the order of the keys' bytes", found, keys)
    page = s3.list_objects_v2(Bucket=bucket, Prefix="list/", Delimiter="/")
    prefixes = [item["Prefix"] for item in page["CommonPrefixes"]]
    checks.equal("common prefixes", prefixes, ["list/a/", "list/b/"])
    first = s3.list_objects(Bucket=bucket, Prefix="list/", Delimiter="/", MaxKeys=2)
    checks.equal("V1 gives a marker", (first["IsTruncated"], first["NextMarker"]), (True, "list/a/"))
    rest = s3.list_objects(Bucket=bucket, Prefix="list/", Delimiter="/", Marker=first["NextMarker"])
    checks.equal("and goes on after it", rest["CommonPrefixes"][0]["Prefix"], "list/b/")
    after = s3.list_objects_v2(Bucket=bucket, Prefix="list/", StartAfter="list/a/c/d")["Contents"][0]["Key"]
    checks.equal("start-after", after, "list/a\u0301")


def multipart(checks, s3, bucket):
    data = [os.urandom(5 << 20), os.urandom(5 << 20), os.urandom(100)]
    upload = s3.create_multipart_upload(Bucket=bucket, Key="big", Metadata={"k": "v"})["UploadId"]
    listed = s3.list_multipart_uploads(Bucket=bucket)["Uploads"]
    checks.equal("an upload is listed", [item["UploadId"] for item in listed], [upload])
    parts = []
    for number, part in enumerate(data, 1):
        etag = s3.upload_part(Bucket=bucket, Key="big", UploadId=upload, PartNumber=number, Body=part)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    numbers = [part["PartNumber"] for part in s3.list_parts(Bucket=bucket, Key="big", UploadId=upload)["Parts"]]
    checks.equal("its parts are listed", numbers, [1, 2, 3])
    checks.equal("it is no object yet", status_of(lambda: s3.head_object(Bucket=bucket, Key="big")), 404)
    done = s3.complete_multipart_upload(Bucket=bucket, Key="big", UploadId=upload, MultipartUpload={"Parts": parts})
    expected = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in data)).hexdigest() + "-3"
    checks.equal("its ETag is that of S3", done["ETag"].strip('"'), expected)
    checks.that("it is whole", body(s3, bucket, "big") == b"".join(data))
    second = s3.get_object(Bucket=bucket, Key="big", PartNumber=2)
    checks.that("one part of it", second["Body"].read() == data[1] and second["PartsCount"] == 3)
    middle = body(s3, bucket, "big", Range=f"bytes={(5 << 20) - 10}-{(5 << 20) + 9}")
    checks.that("a range over a border", middle == data[0][-10:] + data[1][:10])
    attributes = s3.get_object_attributes(Bucket=bucket, Key="big", ObjectAttributes=["ObjectParts", "ObjectSize", "ETag"])
    shown = attributes["ObjectSize"], attributes["ObjectParts"]["TotalPartsCount"]
    checks.equal("GetObjectAttributes", shown, (sum(map(len, data)), 3))
    copy = s3.create_multipart_upload(Bucket=bucket, Key="copied")["UploadId"]
    etags = []
    for number, span in ((1, f"0-{(5 << 20) + 6}"), (2, f"{(5 << 20) + 7}-{sum(map(len, data)) - 1}")):
        source = {"Bucket": bucket, "Key": "big"}
        made = s3.upload_part_copy(
            Bucket=bucket, Key="copied", UploadId=copy, PartNumber=number, CopySource=source, CopySourceRange=f"bytes={span}"
        )
        etags.append({"PartNumber": number, "ETag": made["CopyPartResult"]["ETag"]})
    s3.complete_multipart_upload(Bucket=bucket, Key="copied", UploadId=copy, MultipartUpload={"Parts": etags})
    checks.that("parts copied by range make the whole", body(s3, bucket, "copied") == b"".join(data))
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "big"})
    s3.delete_object(Bucket=bucket, Key="big")
    checks.that("a copy outlives its source", body(s3, bucket, "copy") == b"".join(data))
    aborted = s3.create_multipart_upload(Bucket=bucket, Key="never")["UploadId"]
    s3.abort_multipart_upload(Bucket=bucket, Key="never", UploadId=aborted)
    late = lambda: s3.upload_part(Bucket=bucket, Key="never", UploadId=aborted, PartNumber=1, Body=b"x")
    checks.equal("a part for an aborted upload", code_of(late), "NoSuchUpload")
    small = s3.create_multipart_upload(Bucket=bucket, Key="small", ChecksumAlgorithm="CRC32")["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key="small", UploadId=small, PartNumber=1, Body=b"tiny", ChecksumAlgorithm="CRC32")
    named = [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]}]
    done = s3.complete_multipart_upload(Bucket=bucket, Key="small", UploadId=small, MultipartUpload={"Parts": named})
    checks.that("a composite checksum", done.get("ChecksumCRC32", "").endswith("-1"), done)


def versioning(checks, s3, bucket):
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    checks.equal("versioning is on", s3.get_bucket_versioning(Bucket=bucket)["Status"], "Enabled")
    ids = [s3.put_object(Bucket=bucket, Key="v", Body=text)["VersionId"] for text in (b"1", b"2")]
    marker = s3.delete_object(Bucket=bucket, Key="v")
    checks.that("DELETE makes a marker", marker["DeleteMarker"])
    checks.equal("which hides the object", code_of(lambda: s3.get_object(Bucket=bucket, Key="v")), "NoSuchKey")
    checks.equal("but not its versions", body(s3, bucket, "v", VersionId=ids[0]), b"1")
    listed = s3.list_object_versions(Bucket=bucket, Prefix="v")
    shown = [item["VersionId"] for item in listed["Versions"]], listed["DeleteMarkers"][0]["IsLatest"]
    checks.equal("ListObjectVersions", shown, (ids[::-1], True))
    s3.delete_object(Bucket=bucket, Key="v", VersionId=marker["VersionId"])
    checks.equal("without the marker it is back", body(s3, bucket, "v"), b"2")


def buckets(checks, s3, anonymous, bucket):
    taken = lambda: s3.create_bucket(Bucket=bucket)
    checks.equal("a bucket of one's own", code_of(taken), "BucketAlreadyOwnedByYou")
    checks.equal("a bucket named like a probe", status_of(lambda: s3.create_bucket(Bucket="healthz")), 405)
    checks.that("it is listed", bucket in [item["Name"] for item in s3.list_buckets()["Buckets"]])
    s3.head_bucket(Bucket=bucket)
    checks.equal("its location", s3.get_bucket_location(Bucket=bucket)["LocationConstraint"], None)
    checks.equal("no policy", code_of(lambda: s3.get_bucket_policy(Bucket=bucket)), "NoSuchBucketPolicy")
    s3.put_object(Bucket=bucket, Key="public/x", Body=b"x")
    read = lambda: anonymous(f"/{bucket}/public/x")[0]
    checks.equal("nobody reads it unasked", read(), 403)
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/public/*"}
        ],
    }
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    checks.equal("with a policy everybody does", read(), 200)
    checks.that("the policy is public", s3.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"]["IsPublic"])
    s3.delete_bucket_policy(Bucket=bucket)
    checks.equal("and without it nobody", read(), 403)
    cors = {"CORSRules": [{"AllowedMethods": ["GET"], "AllowedOrigins": ["https://example.com"], "MaxAgeSeconds": 9}]}
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration=cors)
    checks.equal("CORS rules", s3.get_bucket_cors(Bucket=bucket)["CORSRules"][0]["MaxAgeSeconds"], 9)
    asked = {"Origin": "https://example.com", "Access-Control-Request-Method": "GET"}
    status, headers = anonymous(f"/{bucket}/public/x", "OPTIONS", asked)
    checks.equal("a preflight", (status, headers.get("access-control-allow-origin")), (200, "https://example.com"))
    asked["Origin"] = "https://example.org"
    checks.equal("from elsewhere", anonymous(f"/{bucket}/public/x", "OPTIONS", asked)[0], 403)
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": [{"Key": "k", "Value": "v"}]})
    checks.equal("bucket tags", s3.get_bucket_tagging(Bucket=bucket)["TagSet"], [{"Key": "k", "Value": "v"}])
    rule = {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 1}}
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
    kept = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"][0]
    checks.equal("lifecycle rules", (kept["ID"], kept["Expiration"]["Days"]), ("r", 1))
    s3.put_bucket_acl(Bucket=bucket, ACL="public-read")
    checks.equal("a public bucket is listed by anybody", anonymous(f"/{bucket}?list-type=2")[0], 200)
    s3.put_bucket_acl(Bucket=bucket, ACL="private")
    checks.equal("and a private one is not", anonymous(f"/{bucket}?list-type=2")[0], 403)
    checks.equal("a full bucket stays", code_of(lambda: s3.delete_bucket(Bucket=bucket)), "BucketNotEmpty")
    secret = lambda: s3.put_object(Bucket=bucket, Key="k", Body=b"x", ServerSideEncryption="AES256")
    checks.equal("encryption is refused by name", code_of(secret), "NotImplemented")
    website = {"IndexDocument": {"Suffix": "i"}}
    site = lambda: s3.put_bucket_website(Bucket=bucket, WebsiteConfiguration=website)
    checks.equal("websites are not there", code_of(site), "NotImplemented")


def presigned(checks, s3, bucket):
    url = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "signed"}, ExpiresIn=60)
    request = urllib.request.Request(url, data=b"by URL", method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        checks.equal("PUT by a presigned URL", answer.status, 200)
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "signed"}, ExpiresIn=60)
    with urllib.request.urlopen(url, timeout=10) as answer:
        checks.equal("GET by a presigned URL", answer.read(), b"by URL")
    try:
        urllib.request.urlopen(url[:-1] + ("0" if url[-1] != "0" else "1"), timeout=10)
        checks.that("a forged one is refused", False)
    except urllib.error.HTTPError as error:
        checks.equal("a forged one is refused", error.code, 403)
    form = s3.generate_presigned_post(bucket, "form/f.txt", Conditions=[["content-length-range", 1, 100]])
    boundary = "----leadline"
    fields = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in form["fields"].items()
    )
    file = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="f.txt"\r\n\r\nin a form\r\n--{boundary}--\r\n'
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(form["url"], data=(fields + file).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        checks.equal("a POST form", answer.status // 100, 2)
    checks.equal("stores the file", body(s3, bucket, "form/f.txt"), b"in a form")


def access(checks, node, s3, bucket):
    reader = client(node, new_key(node, "--grant", f"{bucket}=read"))
    s3.put_object(Bucket=bucket, Key="shared", Body=b"x")
    checks.equal("a reader reads", body(reader, bucket, "shared"), b"x")
    write = lambda: reader.put_object(Bucket=bucket, Key="shared", Body=b"y")
    checks.equal("and does not write", code_of(write), "AccessDenied")
    stranger = client(node, new_key(node))
    checks.equal("a stranger does neither", code_of(lambda: stranger.get_object(Bucket=bucket, Key="shared")), "AccessDenied")
    checks.equal("nor sees the bucket", stranger.list_buckets()["Buckets"], [])
    wrong = client(node, ("LLNOSUCHKEY", "secret"))
    checks.equal("an unknown key", code_of(wrong.list_buckets), "InvalidAccessKeyId")
    known = new_key(node)
    forged = client(node, (known[0], "not the secret"))
    checks.equal("a wrong secret", code_of(forged.list_buckets), "SignatureDoesNotMatch")


def one(checks):
    node = one_node()
    key = new_key(node, "--admin")
    s3 = client(node, key)
    s3.create_bucket(Bucket="bucket")
    s3.create_bucket(Bucket="versions")

    def anonymous(path, method="GET", headers=None):
        request = urllib.request.Request(f"http://127.0.0.1:{node.s3}{path}", method=method, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, {name.lower(): value for name, value in answer.headers.items()}
        except urllib.error.HTTPError as error:
            return error.code, {}

    for name, part in (
        ("objects", lambda: objects(checks, s3, "bucket")),
        ("checksums", lambda: checksums(checks, s3, "bucket")),
        ("listings", lambda: listings(checks, s3, "bucket")),
        ("multipart", lambda: multipart(checks, s3, "bucket")),
        ("versioning", lambda: versioning(checks, s3, "versions")),
        ("buckets", lambda: buckets(checks, s3, anonymous, "bucket")),
        ("presigned", lambda: presigned(checks, s3, "bucket")),
        ("access", lambda: access(checks, node, s3, "bucket")),
    ):
        with checks.part(name, [node]):
            part()
    checks.equal("probes answer on the S3 port", http_get(node.s3, "/healthz")[0], 200)
    checks.equal("also about leadership", http_get(node.s3, "/healthz/leader")[0], 200)
    status, _, text = node.get("/metrics")
    checks.that("S3 requests are counted", status == 200 and "leadline_s3_requests_total" in text)
    node.kill()
    node.start().ready()
    checks.that("after kill -9 all is there", len(body(client(node, key), "bucket", "copy")) > 10 << 20)


def three(checks):
    nodes = three_nodes()
    key = new_key(nodes[0], "--admin")
    clients = [client(node, key) for node in nodes]
    clients[0].create_bucket(Bucket="shared")
    data = os.urandom(3 << 20)
    for number, (writer, reader) in enumerate(zip(clients, clients[1:] + clients[:1])):
        writer.put_object(Bucket="shared", Key=f"k{number}", Body=data)
        same = body(reader, "shared", f"k{number}") == data
        listed = reader.list_objects_v2(Bucket="shared", Prefix=f"k{number}")["KeyCount"]
        checks.that("a write at one node is read and listed at the next", same and listed == 1)

    def contend(number):
        s3 = clients[number % 3]
        try:
            s3.put_object(Bucket="shared", Key="lock", Body=str(number).encode(), IfNoneMatch="*")
            return number
        except ClientError as error:
            code = error.response["Error"]["Code"]
            return None if code in ("PreconditionFailed", "ConditionalRequestConflict") else code

    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        outcomes = list(pool.map(contend, range(100)))
    winners = [outcome for outcome in outcomes if isinstance(outcome, int)]
    checks.equal("of 100 that want a lock one gets it", len(winners), 1)
    checks.equal("and it is the one that is read", body(clients[1], "shared", "lock"), str(winners[0]).encode())
    stream = io.BytesIO(os.urandom(40 << 20))
    clients[2].upload_fileobj(stream, "shared", "large")
    stream.seek(0)
    checks.that("40 MiB by the transfer manager", body(clients[0], "shared", "large") == stream.getvalue())


def run(checks):
    with checks.part("one node"):
        one(checks)
    with checks.part("three nodes"):
        three(checks)


main("s3", 230, run)
