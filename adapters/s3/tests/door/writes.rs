//! Copies.

use crate::world::{World, ask};

#[tokio::test]
async fn a_copy_names_no_delete_marker() {
    let world = World::with("bucket").await;
    let versions = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    world
        .admin(ask("PUT", "/bucket?versioning=").body(versions))
        .await
        .is(200);
    world
        .admin(ask("PUT", "/bucket/key").body("x"))
        .await
        .is(200);
    let gone = world.admin(ask("DELETE", "/bucket/key")).await.is(204);
    let id = gone.header("x-amz-version-id").unwrap();
    let copy = |source: &str| ask("PUT", "/bucket/copy").header("x-amz-copy-source", source);
    let answer = world
        .admin(copy(&format!("/bucket/key?versionId={id}")))
        .await
        .is(400);
    assert_eq!(answer.code(), "InvalidRequest");
    let answer = world.admin(copy("/bucket/key")).await.is(404);
    assert_eq!(answer.code(), "NoSuchKey");
}

#[tokio::test]
async fn a_copy_has_no_redirect_but_its_own() {
    let world = World::with("bucket").await;
    let name = "x-amz-website-redirect-location";
    let put = ask("PUT", "/bucket/key")
        .header(name, "/elsewhere")
        .body("x");
    world.admin(put).await.is(200);
    let copy = || ask("PUT", "/bucket/copy").header("x-amz-copy-source", "/bucket/key");
    world.admin(copy()).await.is(200);
    let head = world.admin(ask("HEAD", "/bucket/copy")).await.is(200);
    assert_eq!(head.header(name), None);
    world.admin(copy().header(name, "/there")).await.is(200);
    let head = world.admin(ask("HEAD", "/bucket/copy")).await.is(200);
    assert_eq!(head.header(name), Some("/there"));
}
