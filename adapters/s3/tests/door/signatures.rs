//! Signatures in headers, in queries, and of the second version.

use ring::hmac;

use crate::world::{HOST, Key, World, ask};

fn signed_v2(key: &Key, method: &str, target: &str, resource: &str) -> crate::world::Ask {
    let date = "Tue, 27 Mar 2007 19:36:42 +0000";
    let text = format!("{method}\n\n\n{date}\n{resource}");
    let secret = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key.secret.as_bytes());
    let tag = hmac::sign(&secret, text.as_bytes());
    let signature = base64_simd::STANDARD.encode_to_string(tag);
    ask(method, target)
        .header("date", date)
        .header("authorization", &format!("AWS {}:{signature}", key.access))
}

/// boto signs `/bucket/` for `GET /bucket`, others what they send.
#[tokio::test]
async fn a_bucket_is_signed_with_and_without_a_slash_behind_it() {
    let world = World::with("bucket").await;
    let key = &world.admin;
    for (target, resource, status) in [
        ("/bucket", "/bucket", 200),
        ("/bucket", "/bucket/", 200),
        ("/bucket/", "/bucket/", 200),
        ("/bucket?location=", "/bucket/?location", 200),
        ("/bucket?location=", "/bucket?location", 200),
        ("/bucket", "/other/", 403),
        ("/bucket/key", "/bucket/key/", 403),
    ] {
        let asked = signed_v2(key, "GET", target, resource);
        let answer = world.send(asked).await;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "{target} as {resource}: {answer:?}"
        );
    }
    let asked = signed_v2(key, "PUT", "/another", "/another/");
    world.send(asked).await.is(200);
}

/// The JavaScript SDK moves headers into the query that it signs.
#[tokio::test]
async fn what_a_presigned_query_says_counts_as_headers() {
    let world = World::with("bucket").await;
    let key = &world.admin;
    let put = ask(
        "PUT",
        "/bucket/key?x-amz-acl=public-read&x-amz-meta-color=sky%20blue&x-amz-storage-class=STANDARD_IA&x-amz-checksum-crc32=9i1y0A%3D%3D&x-amz-tagging=a%3Db&x-id=PutObject",
    );
    // The CRC32 of other bytes.
    let wrong = put.clone().body("other").presigned(key, 60);
    assert_eq!(world.send(wrong).await.is(400).code(), "BadDigest");
    let put = ask(
        "PUT",
        "/bucket/key?x-amz-acl=public-read&x-amz-meta-color=sky%20blue&x-amz-storage-class=STANDARD_IA&x-amz-tagging=a%3Db",
    );
    world.send(put.body("x").presigned(key, 60)).await.is(200);
    let head = world.send(ask("HEAD", "/bucket/key")).await.is(200);
    assert_eq!(head.header("x-amz-meta-color"), Some("sky blue"));
    assert_eq!(head.header("x-amz-storage-class"), Some("STANDARD_IA"));
    let tags = world
        .admin(ask("GET", "/bucket/key?tagging="))
        .await
        .is(200);
    assert_eq!(tags.element("Key"), "", "AWS ignores tags in a query");
    let locked = ask("PUT", "/bucket/key?x-amz-server-side-encryption=AES256").body("x");
    world.send(locked.presigned(key, 60)).await.is(501);
    // Nobody signed this one.
    let signed = ask("PUT", "/bucket/key").body("x").presigned(key, 60);
    let forged = signed.parameter("x-amz-acl", "public-read");
    world.send(forged).await.is(403);
    let other = ask("PUT", "/bucket/plain?x-amz-acl=public-read").body("x");
    world.admin(other).await.is(200);
    world.send(ask("GET", "/bucket/plain")).await.is(403);
    let source = ask("PUT", "/bucket/copy?x-amz-copy-source=bucket%2Fkey");
    let answer = world.send(source.presigned(key, 60)).await.is(200);
    assert!(answer.text.contains("CopyObjectResult"), "{answer:?}");
}

#[tokio::test]
async fn a_presigned_url_lives_a_week_at_most() {
    let world = World::with("bucket").await;
    let list = |seconds| ask("GET", "/bucket").presigned(&world.admin, seconds);
    world.send(list(604_800)).await.is(200);
    let answer = world.send(list(604_801)).await.is(400);
    assert_eq!(answer.code(), "AuthorizationQueryParametersError");
    let written = "/bucket?X-Amz-Expire%73=604801";
    world.send(ask("GET", written)).await.is(400);
}

/// The probes share the port, not the keys of a bucket that has a host of its own.
#[tokio::test]
async fn keys_of_a_bucket_with_its_own_host_are_not_probes() {
    let world = World::with("bucket").await;
    for key in ["healthz", "livez", "readyz"] {
        let host = format!("bucket.{HOST}");
        let put = ask("PUT", &format!("/{key}")).host(&host).body("mine");
        world.admin(put).await.is(200);
        let answer = world
            .admin(ask("GET", &format!("/{key}")).host(&host))
            .await
            .is(200);
        assert_eq!(answer.text, "mine");
        let answer = world.send(ask("GET", &format!("/{key}"))).await.is(200);
        assert_eq!(answer.text, "ok\n");
    }
}

/// Also of a request that is brought to other words.
#[tokio::test]
async fn a_header_that_nobody_signed_is_refused_beside_an_odd_range() {
    let world = World::with("bucket").await;
    let read = || ask("GET", "/bucket");
    let signed = read().header("range", "bytes=abc").signed(&world.admin);
    world.send(signed.clone()).await.is(200);
    world
        .send(signed.header("x-amz-acl", "private"))
        .await
        .is(403);
    let signed = read()
        .presigned(&world.admin, 60)
        .header("range", "bytes=abc");
    world
        .send(signed.header("x-amz-acl", "private"))
        .await
        .is(403);
}
