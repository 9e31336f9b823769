//! Who may see what.

use crate::world::{World, ask};

fn allow(actions: &str) -> String {
    format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":"*","Action":[{actions}],"Resource":["arn:aws:s3:::bucket","arn:aws:s3:::bucket/*"]}}]}}"#
    )
}

/// Whoever may not list is not told which keys there are.
#[tokio::test]
async fn an_absent_key_is_denied_to_who_may_not_list() {
    let world = World::with("bucket").await;
    let read = allow(r#""s3:GetObject""#);
    world
        .admin(ask("PUT", "/bucket?policy=").body(read))
        .await
        .is(204);
    for method in ["GET", "HEAD"] {
        world.send(ask(method, "/bucket/nothing")).await.is(403);
        world.admin(ask(method, "/bucket/nothing")).await.is(404);
    }
    let both = allow(r#""s3:GetObject","s3:ListBucket""#);
    world
        .admin(ask("PUT", "/bucket?policy=").body(both))
        .await
        .is(204);
    world.send(ask("GET", "/bucket/nothing")).await.is(404);
    let reader = world.key(false, &[("bucket", "read")]).await;
    world.admin(ask("DELETE", "/bucket?policy=")).await.is(204);
    world
        .send(ask("GET", "/bucket/nothing").signed(&reader))
        .await
        .is(404);
}

#[tokio::test]
async fn actions_on_versions_and_attributes_have_names_of_their_own() {
    let world = World::with("bucket").await;
    world
        .admin(ask("PUT", "/bucket/key").body("x"))
        .await
        .is(200);
    let attributes = |target: &str| ask("GET", target).header("x-amz-object-attributes", "ETag");
    let grants = format!(
        r#"<AccessControlPolicy><AccessControlList><Grant><Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser"><ID>{}</ID></Grantee><Permission>FULL_CONTROL</Permission></Grant></AccessControlList></AccessControlPolicy>"#,
        world.admin.access
    );
    let tagging = "<Tagging><TagSet></TagSet></Tagging>";
    for (actions, asked, status) in [
        (
            r#""s3:GetObjectTagging""#,
            ask("GET", "/bucket/key?tagging="),
            200,
        ),
        (
            r#""s3:GetObjectTagging""#,
            ask("GET", "/bucket/key?tagging=&versionId=null"),
            403,
        ),
        (
            r#""s3:GetObjectVersionTagging""#,
            ask("GET", "/bucket/key?tagging=&versionId=null"),
            200,
        ),
        (
            r#""s3:PutObjectTagging""#,
            ask("PUT", "/bucket/key?tagging=&versionId=null").body(tagging),
            403,
        ),
        (
            r#""s3:PutObjectVersionTagging""#,
            ask("PUT", "/bucket/key?tagging=&versionId=null").body(tagging),
            200,
        ),
        (
            r#""s3:DeleteObjectTagging""#,
            ask("DELETE", "/bucket/key?tagging=&versionId=null"),
            403,
        ),
        (
            r#""s3:DeleteObjectVersionTagging""#,
            ask("DELETE", "/bucket/key?tagging=&versionId=null"),
            204,
        ),
        (
            r#""s3:GetObjectAcl""#,
            ask("GET", "/bucket/key?acl=&versionId=null"),
            403,
        ),
        (
            r#""s3:GetObjectVersionAcl""#,
            ask("GET", "/bucket/key?acl=&versionId=null"),
            200,
        ),
        (
            r#""s3:PutObjectAcl""#,
            ask("PUT", "/bucket/key?acl=&versionId=null").body(&grants),
            403,
        ),
        (
            r#""s3:PutObjectVersionAcl""#,
            ask("PUT", "/bucket/key?acl=&versionId=null").body(&grants),
            200,
        ),
        (
            r#""s3:GetObject""#,
            attributes("/bucket/key?attributes="),
            403,
        ),
        (
            r#""s3:GetObjectAttributes""#,
            attributes("/bucket/key?attributes="),
            403,
        ),
        (
            r#""s3:GetObject","s3:GetObjectAttributes""#,
            attributes("/bucket/key?attributes="),
            200,
        ),
        (
            r#""s3:GetObject","s3:GetObjectAttributes""#,
            attributes("/bucket/key?attributes=&versionId=null"),
            403,
        ),
        (
            r#""s3:GetObjectVersion","s3:GetObjectVersionAttributes""#,
            attributes("/bucket/key?attributes=&versionId=null"),
            200,
        ),
    ] {
        let put = ask("PUT", "/bucket?policy=").body(allow(actions));
        world.admin(put).await.is(204);
        let target = format!("{} {:?}", asked.method, asked.query);
        let answer = world.send(asked).await;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "{actions} {target}: {answer:?}"
        );
    }
}

#[tokio::test]
async fn a_bucket_of_another_owner_than_expected_is_denied() {
    let world = World::with("bucket").await;
    world
        .admin(ask("PUT", "/bucket/key").body("x"))
        .await
        .is(200);
    let name = "x-amz-expected-bucket-owner";
    for (owner, status) in [(world.admin.access.as_str(), 200), ("111122223333", 403)] {
        for asked in [
            ask("GET", "/bucket/key"),
            ask("HEAD", "/bucket"),
            ask("GET", "/bucket"),
            ask("PUT", "/bucket/other").body("x"),
            ask("PUT", "/bucket/copy").header("x-amz-copy-source", "/bucket/key"),
            ask("POST", "/bucket/parts?uploads="),
        ] {
            world.admin(asked.header(name, owner)).await.is(status);
        }
        let copy = ask("PUT", "/bucket/copy").header("x-amz-copy-source", "/bucket/key");
        let copy = copy.header("x-amz-source-expected-bucket-owner", owner);
        world.admin(copy).await.is(status);
    }
}
