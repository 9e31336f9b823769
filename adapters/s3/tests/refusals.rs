//! What the S3 door refuses, at its port: requests whose sender could not have meant them, and what is
//! not implemented.

mod signer;

use signer::{Seen, World, ask};

impl World {
    async fn put(&self, target: &str, body: &str) -> Seen {
        let put = self.send(ask("PUT", target).body(body.to_owned())).await;
        assert!(put.status.is_success(), "{target}: {put:?}");
        put
    }

    /// What anybody's GET of the owner's object sees.
    async fn body_of(&self, target: &str) -> String {
        self.send(ask("GET", target)).await.text
    }
}

/// Whoever was given a URL to upload to could else publish what its signer can read.
#[tokio::test]
async fn a_header_that_the_signature_does_not_cover_is_refused() {
    let world = World::new().await;
    world.send(ask("PUT", "/box/secret").body("secret")).await;
    let put = || ask("PUT", "/box/inbox");
    for added in [
        put().unsigned("x-amz-copy-source", "/box/secret"),
        put().unsigned("x-amz-acl", "public-read"),
        put().unsigned("x-amz-meta-a", "b"),
    ] {
        let presigned = world.send_presigned(added.clone()).await;
        let authorized = world.send(added).await;
        for seen in [presigned, authorized] {
            assert_eq!(seen.outcome(), "403 AccessDenied", "{seen:?}");
            assert!(seen.text.contains("not signed: x-amz-"), "{seen:?}");
        }
    }
    let head = world.send(ask("HEAD", "/box/inbox")).await;
    assert_eq!(head.status, 404, "nothing was stored");
}

#[tokio::test]
async fn headers_that_are_signed_and_the_hash_of_the_body_are_taken() {
    let world = World::new().await;
    let put = ask("PUT", "/box/k")
        .body("hello")
        .header("x-amz-acl", "public-read");
    let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    for seen in [
        world.send(put.clone()).await,
        world.send_presigned(put.clone()).await,
        world
            .send_presigned(put.unsigned("x-amz-content-sha256", sha256))
            .await,
    ] {
        assert_eq!(seen.outcome(), "200 ", "{seen:?}");
    }
    let read =
        world.send_anonymously(ask("GET", "/box/k").header("x-amz-checksum-mode", "ENABLED"));
    assert_eq!(
        read.await.text,
        "hello",
        "nothing is signed, so nothing is missing"
    );
}
