//! What the S3 door refuses, at its port: requests whose sender could not have meant them, and what is
//! not implemented.

use base64_simd::STANDARD as BASE64;

use crate::world::{Answer, Ask, Key, PAYLOAD, World, ask};

/// Of the bucket `box`, by no more than having made it.
struct Owner {
    world: World,
    key: Key,
}

impl Owner {
    async fn new() -> Self {
        let world = World::new().await;
        let key = world.key(false, &[]).await;
        let owner = Self { world, key };
        owner.send(ask("PUT", "/box")).await.is(200);
        owner
    }

    async fn send(&self, ask: Ask) -> Answer {
        self.world.send(ask.signed(&self.key)).await
    }

    async fn put(&self, target: &str, body: &str) -> Answer {
        let put = self.send(ask("PUT", target).body(body)).await;
        assert!(put.status.is_success(), "{target}: {put:?}");
        put
    }

    async fn body_of(&self, target: &str) -> String {
        self.send(ask("GET", target)).await.text
    }
}

/// Whoever was given a URL to upload to could else publish what its signer can read.
#[tokio::test]
async fn a_header_that_the_signature_does_not_cover_is_refused() {
    let owner = Owner::new().await;
    owner.send(ask("PUT", "/box/secret").body("secret")).await;
    for (name, value) in [
        ("x-amz-copy-source", "/box/secret"),
        ("x-amz-acl", "public-read"),
        ("x-amz-meta-a", "b"),
    ] {
        let put = ask("PUT", "/box/inbox");
        for signed in [
            put.clone().presigned(&owner.key, 60),
            put.signed(&owner.key),
        ] {
            let seen = owner.world.send(signed.header(name, value)).await;
            assert_eq!(seen.outcome(), "403 AccessDenied", "{seen:?}");
            assert!(seen.text.contains("not signed: x-amz-"), "{seen:?}");
        }
    }
    let head = owner.send(ask("HEAD", "/box/inbox")).await;
    assert_eq!(head.status, 404, "nothing was stored");
}

#[tokio::test]
async fn headers_that_are_signed_and_the_hash_of_the_body_are_taken() {
    let owner = Owner::new().await;
    let put = ask("PUT", "/box/k")
        .body("hello")
        .header("x-amz-acl", "public-read");
    let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let presigned = put.clone().presigned(&owner.key, 60);
    for signed in [
        put.signed(&owner.key),
        presigned.clone(),
        presigned.header(PAYLOAD, sha256),
    ] {
        let seen = owner.world.send(signed).await;
        assert_eq!(seen.outcome(), "200 ", "{seen:?}");
    }
    let read = ask("GET", "/box/k").header("x-amz-checksum-mode", "ENABLED");
    assert_eq!(
        owner.world.send(read).await.text,
        "hello",
        "nothing is signed, so nothing is missing"
    );
}

/// `s3s` would serve each of these as the plain operation.
#[tokio::test]
async fn a_sub_resource_that_is_not_served_is_not_the_object_or_the_bucket() {
    let owner = Owner::new().await;
    for target in [
        "/box?metadataConfiguration",
        "/box?abac",
        "/box?acl",
        "/box?unheard-of",
    ] {
        let seen = owner.send(ask("DELETE", target)).await;
        assert_eq!(seen.outcome(), "501 NotImplemented", "{target}");
    }
    assert_eq!(owner.send(ask("HEAD", "/box")).await.status, 200);
    owner.put("/box/k", "precious").await;
    for target in [
        "/box/k?encryption",
        "/box/k?renameObject",
        "/box/k?unheard-of=",
    ] {
        let seen = owner.send(ask("PUT", target).body("<x/>")).await;
        assert_eq!(seen.outcome(), "501 NotImplemented", "{target}");
    }
    for target in ["/box/k?uploadId=1", "/box/k?partNumber=1"] {
        let seen = owner.send(ask("PUT", target).body("part")).await;
        assert_eq!(seen.outcome(), "400 InvalidArgument", "{target}");
    }
    let seen = owner.send(ask("DELETE", "/box/k?acl")).await;
    assert_eq!(seen.outcome(), "501 NotImplemented");
    let seen = owner.send(ask("GET", "/box?abac")).await;
    assert_eq!(seen.outcome(), "501 NotImplemented");
    assert!(seen.text.contains("?abac"), "{}", seen.text);
    assert_eq!(owner.body_of("/box/k").await, "precious");
}

#[tokio::test]
async fn parameters_that_mean_nothing_are_ignored() {
    let owner = Owner::new().await;
    owner.put("/box/k?x-id=PutObject&cache=no", "font").await;
    for target in [
        "/box/k?iefix",
        "/box/k?v=1",
        "/box/k?x-id=GetObject&versionId=",
    ] {
        assert_eq!(owner.body_of(target).await, "font", "{target}");
    }
    for target in [
        "/box?list-type=2&prefix=&delimiter=&metadata=true",
        "/box?versions&prefix",
    ] {
        let listed = owner.send(ask("GET", target)).await;
        assert_eq!(listed.element("Key"), "k", "{listed:?}");
    }
}

fn denial(action: &str) -> String {
    format!(
        r#"{{"Statement":[{{"Effect":"Deny","Principal":"*","Action":"{action}","Resource":"arn:aws:s3:::box/*"}}]}}"#
    )
}

#[tokio::test]
async fn a_denial_to_delete_versions_holds_for_many_at_once() {
    let owner = Owner::new().await;
    let enabled = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    owner.put("/box?versioning", enabled).await;
    let version = owner.put("/box/k", "kept").await;
    let version = version.header("x-amz-version-id").unwrap();
    owner
        .put("/box?policy", &denial("s3:DeleteObjectVersion"))
        .await;
    let both = format!(
        "<Delete><Object><Key>k</Key><VersionId>{version}</VersionId></Object><Object><Key>other</Key></Object></Delete>"
    );
    let seen = owner.send(ask("POST", "/box?delete").body(both)).await;
    assert_eq!(seen.outcome(), "200 AccessDenied", "{seen:?}");
    assert!(
        seen.text.contains("<DeleteMarker>true"),
        "the other went: {seen:?}"
    );
    let kept = owner.body_of(&format!("/box/k?versionId={version}")).await;
    assert_eq!(kept, "kept");
}

/// Who may put objects, and not say who else reads them, or what their tags are.
#[tokio::test]
async fn a_denial_to_set_acls_or_tags_holds_for_writes_that_bring_them() {
    let owner = Owner::new().await;
    owner.put("/box/k", "x").await;
    let copy = || ask("PUT", "/box/copy").header("x-amz-copy-source", "/box/k");
    let writes = || {
        let put = ask("PUT", "/box/new").body("x");
        let large = ask("PUT", "/box/new").body([0; 20 << 10]);
        [put, large, copy(), ask("POST", "/box/new?uploads")]
    };
    for (action, header, value) in [
        ("s3:PutObjectAcl", "x-amz-acl", "public-read"),
        ("s3:PutObjectAcl", "x-amz-acl", "private"),
        ("s3:PutObjectTagging", "x-amz-tagging", "a=b"),
    ] {
        owner.put("/box?policy", &denial(action)).await;
        for plain in writes() {
            let write = plain
                .clone()
                .header("x-amz-tagging-directive", "REPLACE")
                .header(header, value);
            let seen = owner.send(write.clone()).await;
            assert_eq!(seen.outcome(), "403 AccessDenied", "{write:?}");
            let seen = owner.send(plain).await;
            assert_eq!(seen.outcome(), "200 ", "{seen:?}");
        }
    }
    owner.send(ask("DELETE", "/box?policy")).await;
    owner
        .put(
            "/box/k?tagging",
            "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>",
        )
        .await;
    owner
        .put("/box?policy", &denial("s3:PutObjectTagging"))
        .await;
    let seen = owner.send(copy()).await;
    assert_eq!(
        seen.outcome(),
        "403 AccessDenied",
        "a copy brings the tags of its source"
    );
}

#[tokio::test]
async fn an_acl_is_one_that_can_be_kept_or_none() {
    let owner = Owner::new().await;
    owner.put("/box/k", "x").await;
    let id = &owner.key.access;
    let acl = |grants: &[(&str, &str)]| {
        let grants: String = grants
            .iter()
            .map(|(id, permission)| {
                format!(
                    r#"<Grant><Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser"><ID>{id}</ID></Grantee><Permission>{permission}</Permission></Grant>"#
                )
            })
            .collect();
        format!(
            "<AccessControlPolicy><Owner><ID>{id}</ID></Owner><AccessControlList>{grants}</AccessControlList></AccessControlPolicy>"
        )
    };
    for target in ["/box?acl", "/box/k?acl"] {
        let put = |body: String| owner.send(ask("PUT", target).body(body));
        owner
            .send(ask("PUT", target).header("x-amz-acl", "public-read"))
            .await;
        let others = put(acl(&[(id, "FULL_CONTROL"), ("OTHER", "READ")])).await;
        assert_eq!(others.outcome(), "501 NotImplemented", "{others:?}");
        assert!(others.text.contains("OTHER"), "{others:?}");
        let none = put(String::new()).await;
        assert_eq!(none.outcome(), "400 MissingSecurityHeader", "{none:?}");
        let nothing = put("<AccessControlPolicy></AccessControlPolicy>".to_owned()).await;
        assert_eq!(nothing.outcome(), "400 MalformedACLError", "{nothing:?}");
        let both = ask("PUT", target).header("x-amz-acl", "private");
        let both = owner.send(both.body(acl(&[(id, "FULL_CONTROL")]))).await;
        assert_eq!(both.outcome(), "400 UnexpectedContent", "{both:?}");
        let shown = owner.send(ask("GET", target)).await;
        assert!(
            shown.text.contains("AllUsers"),
            "nothing changed: {shown:?}"
        );
        let again = put(shown.text.clone()).await;
        assert_eq!(
            again.outcome(),
            "200 ",
            "what is shown is taken back: {again:?}"
        );
        let mine = put(acl(&[(id, "FULL_CONTROL")])).await;
        assert_eq!(mine.outcome(), "200 ", "{mine:?}");
        let shown = owner.send(ask("GET", target)).await;
        assert!(!shown.text.contains("AllUsers"), "{shown:?}");
    }
}

const DELETE_K: &str = "<Delete><Object><Key>k</Key></Object></Delete>";

/// Each of them with its own bytes changed on the way.
#[tokio::test]
async fn a_document_that_is_not_what_its_digest_says_is_not_obeyed() {
    let owner = Owner::new().await;
    owner.put("/box/k", "kept").await;
    let tagging = "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>";
    let documents = || {
        [
            ask("POST", "/box?delete").body(DELETE_K),
            ask("PUT", "/box/k?tagging").body(tagging),
            ask("PUT", "/box?tagging").body(tagging),
            ask("PUT", "/box?policy").body(denial("s3:GetObject")),
            ask("PUT", "/box?versioning").body("<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"),
            ask("PUT", "/box?cors").body("<CORSConfiguration><CORSRule><AllowedMethod>GET</AllowedMethod><AllowedOrigin>*</AllowedOrigin></CORSRule></CORSConfiguration>"),
            ask("PUT", "/box?lifecycle").body("<LifecycleConfiguration><Rule><Filter><Prefix>a</Prefix></Filter><Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>"),
            ask("PUT", "/box?acl").header("x-amz-acl", "public-read"),
            ask("PUT", "/box/k?acl").header("x-amz-acl", "public-read"),
            ask("PUT", "/other"),
        ]
    };
    let wrong_md5 = BASE64.encode_to_string([0; 16]);
    let wrong_crc = BASE64.encode_to_string([7; 4]);
    for (name, value, outcome) in [
        ("content-md5", &*wrong_md5, "400 BadDigest"),
        ("content-md5", "not Base64", "400 InvalidDigest"),
        ("x-amz-checksum-crc32", &*wrong_crc, "400 BadDigest"),
        ("x-amz-checksum-sha256", "", "400 BadDigest"),
    ] {
        for document in documents() {
            let seen = owner.send(document.clone().header(name, value)).await;
            assert_eq!(seen.outcome(), outcome, "{name} of {document:?}");
        }
    }
    for document in documents() {
        let seen = owner
            .send(document.clone().header(PAYLOAD, &"0".repeat(64)))
            .await;
        let outcome = "400 XAmzContentSHA256Mismatch";
        assert_eq!(seen.outcome(), outcome, "{document:?}");
    }
    let two = ask("POST", "/box?delete").body(DELETE_K);
    let two = two
        .header("x-amz-checksum-crc32", &wrong_crc)
        .header("x-amz-checksum-crc32c", &wrong_crc);
    assert_eq!(owner.send(two).await.outcome(), "400 InvalidRequest");
    assert_eq!(owner.body_of("/box/k").await, "kept");
    for (target, code) in [
        ("/box?tagging", "NoSuchTagSet"),
        ("/box?policy", "NoSuchBucketPolicy"),
        ("/box?cors", "NoSuchCORSConfiguration"),
        ("/box?lifecycle", "NoSuchLifecycleConfiguration"),
        ("/other?acl", "NoSuchBucket"),
    ] {
        let seen = owner.send(ask("GET", target)).await;
        assert_eq!(seen.element("Code"), code, "{target}");
    }
}

/// CRC-32 and MD5 of the document, computed elsewhere.
#[tokio::test]
async fn a_document_that_is_what_its_digests_say_is_obeyed() {
    let owner = Owner::new().await;
    for (name, value) in [
        ("content-md5", "5DKh5iefM5MSKvRILIuFwQ=="),
        ("x-amz-checksum-crc32", "A8uZRQ=="),
        (
            "x-amz-checksum-sha256",
            "N3LHxLM6RcANrxrdozvL0QrfTWiSV7BCaLd/CXMfyF0=",
        ),
        ("x-amz-meta-none", "said"),
    ] {
        owner.put("/box/k", "x").await;
        let delete = ask("POST", "/box?delete")
            .body(DELETE_K)
            .header(name, value);
        let seen = owner.send(delete).await;
        assert_eq!(seen.outcome(), "200 ", "{name}: {seen:?}");
        assert_eq!(owner.send(ask("HEAD", "/box/k")).await.status, 404);
    }
}

struct Uploaded {
    target: String,
    completion: String,
}

impl Owner {
    /// An upload of one part, `data`, of which nothing is left to do but to complete it.
    async fn upload(&self, create: Ask, part: impl Fn(Ask) -> Ask) -> Uploaded {
        let created = self.send(create).await;
        let id = created.element("UploadId");
        assert!(!id.is_empty(), "{created:?}");
        let put = ask("PUT", &format!("/box/mp?partNumber=1&uploadId={id}")).body("data");
        let put = self.send(part(put)).await;
        assert_eq!(put.outcome(), "200 ", "{put:?}");
        Uploaded {
            target: format!("/box/mp?uploadId={id}"),
            completion: format!(
                "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part></CompleteMultipartUpload>",
                put.header("etag").unwrap()
            ),
        }
    }

    async fn complete(&self, upload: &Uploaded, said: &[(&str, &str)]) -> Answer {
        let complete = ask("POST", &upload.target).body(upload.completion.clone());
        let complete = said
            .iter()
            .fold(complete, |ask, (name, value)| ask.header(name, value));
        self.send(complete).await
    }
}

const CRC32_OF_DATA: &str = "rfPzYw==";
const CRC32_OF_THAT: &str = "wu1R0Q==";

#[tokio::test]
async fn what_a_completion_says_of_the_whole_is_verified_or_refused() {
    const CRC: &str = "x-amz-checksum-crc32";
    const CRC64: &str = "x-amz-checksum-crc64nvme";
    const TYPE: &str = "x-amz-checksum-type";
    let owner = Owner::new().await;
    let create = || ask("POST", "/box/mp?uploads");
    let wrong = "AAAAAA==";

    let plain = owner.upload(create(), |put| put).await;
    for said in [
        &[(CRC64, "AAAAAAAAAAA=")][..],
        &[(CRC, CRC32_OF_DATA)],
        &[(CRC, wrong), (TYPE, "FULL_OBJECT")],
    ] {
        let seen = owner.complete(&plain, said).await;
        assert_eq!(
            seen.outcome(),
            "400 InvalidRequest",
            "nobody knows {said:?}"
        );
    }
    assert_eq!(owner.complete(&plain, &[]).await.outcome(), "200 ");

    let parts_have = owner
        .upload(create(), |put| put.header(CRC, CRC32_OF_DATA))
        .await;
    let seen = owner.complete(&parts_have, &[(CRC, wrong)]).await;
    assert_eq!(seen.outcome(), "400 BadDigest");
    let seen = owner.complete(&parts_have, &[(CRC, CRC32_OF_DATA)]).await;
    assert_eq!(seen.outcome(), "200 ");

    let full = create()
        .header("x-amz-checksum-algorithm", "CRC32")
        .header(TYPE, "FULL_OBJECT");
    let full = owner.upload(full, |put| put).await;
    for (said, outcome) in [
        (&[(CRC, wrong)][..], "400 BadDigest"),
        (&[(CRC64, "AAAAAAAAAAA=")], "400 InvalidRequest"),
        (
            &[(CRC, CRC32_OF_DATA), (CRC64, "AAAAAAAAAAA=")],
            "400 InvalidRequest",
        ),
        (&[(TYPE, "COMPOSITE")], "400 InvalidRequest"),
        (&[(CRC, CRC32_OF_DATA), (TYPE, "FULL_OBJECT")], "200 "),
    ] {
        let seen = owner.complete(&full, said).await;
        assert_eq!(seen.outcome(), outcome, "{said:?}: {seen:?}");
    }

    let with_number = format!("{CRC32_OF_THAT}-1");
    for said in [&*with_number, CRC32_OF_THAT] {
        let composite = create().header("x-amz-checksum-algorithm", "CRC32");
        let composite = owner.upload(composite, |put| put).await;
        let seen = owner.complete(&composite, &[(CRC, "AAAAAA==-1")]).await;
        assert_eq!(seen.outcome(), "400 BadDigest");
        let seen = owner.complete(&composite, &[(CRC, said)]).await;
        assert_eq!(seen.outcome(), "200 ", "{said}: {seen:?}");
    }
}

#[tokio::test]
async fn a_completion_that_is_not_what_its_digest_says_is_not_obeyed() {
    let owner = Owner::new().await;
    let upload = owner
        .upload(ask("POST", "/box/mp?uploads"), |put| put)
        .await;
    let wrong_md5 = BASE64.encode_to_string([0; 16]);
    let seen = owner
        .complete(&upload, &[("content-md5", &wrong_md5)])
        .await;
    assert_eq!(seen.outcome(), "400 BadDigest");
    let complete = ask("POST", &upload.target).body(upload.completion.clone());
    let seen = owner.send(complete.header(PAYLOAD, &"0".repeat(64))).await;
    assert_eq!(seen.outcome(), "400 XAmzContentSHA256Mismatch");
    assert_eq!(owner.send(ask("HEAD", "/box/mp")).await.status, 404);
}

#[tokio::test]
async fn a_checksum_that_is_not_computed_here_is_refused() {
    let owner = Owner::new().await;
    for (name, value) in [
        ("x-amz-checksum-md5", "AAAA"),
        ("x-amz-checksum-sha512", "AAAA"),
        ("x-amz-checksum-xxhash64", "AAAA"),
        ("x-amz-sdk-checksum-algorithm", "SHA512"),
        ("x-amz-trailer", "x-amz-checksum-sha512"),
    ] {
        let put = ask("PUT", "/box/k").body("x").header(name, value);
        let seen = owner.send(put).await;
        assert_eq!(seen.outcome(), "400 InvalidRequest", "{name}: {value}");
        assert!(seen.text.contains("CRC64NVME"), "{seen:?}");
    }
    assert_eq!(owner.send(ask("HEAD", "/box/k")).await.status, 404);
}

/// The last piece is signed too: who cuts it off, and says so in Content-Length, is seen.
#[tokio::test]
async fn a_chunked_body_without_its_last_chunk_is_refused() {
    let owner = Owner::new().await;
    let whole = || ask("PUT", "/box/k").signed_in_pieces(&owner.key, &[b"hello", b"world"]);
    let last = format!("0;chunk-signature={}\r\n\r\n", "0".repeat(64)).len();
    for cut in [last, last - 1, 4, 3] {
        let mut put = whole();
        put.body.truncate(put.body.len() - cut);
        let seen = owner.world.send(put).await;
        assert_eq!(seen.outcome(), "400 IncompleteBody", "without {cut} bytes");
    }
    assert_eq!(owner.send(ask("HEAD", "/box/k")).await.status, 404);
    let seen = owner.world.send(whole()).await;
    assert_eq!(seen.outcome(), "200 ", "{seen:?}");
    assert_eq!(owner.body_of("/box/k").await, "helloworld");
}
