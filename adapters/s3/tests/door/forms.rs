//! Uploads by the forms of browsers.

use time::{Duration, OffsetDateTime};

use crate::world::{Answer, HOST, Key, REGION, World, ask, at, sign_text};

/// A form signed at `signed`, with `fields` that its policy allows.
fn form(key: &Key, signed: OffsetDateTime, fields: &[(&str, &str)]) -> crate::world::Ask {
    let (date, day) = at(signed);
    let credential = format!("{}/{day}/{REGION}/s3/aws4_request", key.access);
    let mut all = vec![
        ("x-amz-algorithm", "AWS4-HMAC-SHA256"),
        ("x-amz-credential", &credential),
        ("x-amz-date", &date),
    ];
    all.extend(fields);
    let conditions: Vec<_> = all
        .iter()
        .filter(|(name, _)| *name != "file")
        .map(|(name, value)| serde_json::json!(["eq", format!("${name}"), value]))
        .collect();
    let expires = OffsetDateTime::now_utc() + Duration::hours(1);
    let expiration = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.000Z",
        expires.year(),
        u8::from(expires.month()),
        expires.day(),
        expires.hour(),
        expires.minute(),
        expires.second()
    );
    let policy = serde_json::json!({"expiration": expiration, "conditions": conditions});
    let policy = base64_simd::STANDARD.encode_to_string(policy.to_string());
    let signature = sign_text(key, &day, &policy);
    all.push(("policy", &policy));
    all.push(("x-amz-signature", &signature));
    unsigned_form(&all)
}

fn unsigned_form(fields: &[(&str, &str)]) -> crate::world::Ask {
    let mut body = String::new();
    for (name, value) in fields {
        body += &format!(
            "--limit\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        );
    }
    body += "--limit\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\nContent-Type: text/plain\r\n\r\nbytes\r\n--limit--\r\n";
    ask("POST", "/bucket")
        .header("content-type", "multipart/form-data; boundary=limit")
        .body(body)
}

async fn posted(world: &World, fields: &[(&str, &str)]) -> Answer {
    let form = form(&world.admin, OffsetDateTime::now_utc(), fields);
    world.send(form).await
}

#[tokio::test]
async fn the_fields_acl_and_tagging_of_a_form_are_obeyed() {
    let world = World::with("bucket").await;
    posted(&world, &[("key", "private")]).await.is(204);
    world.send(ask("GET", "/bucket/private")).await.is(403);
    let tags = "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>";
    let fields = [("key", "public"), ("acl", "public-read"), ("tagging", tags)];
    posted(&world, &fields).await.is(204);
    let answer = world.send(ask("GET", "/bucket/public")).await.is(200);
    assert_eq!(answer.text, "bytes");
    let answer = world
        .admin(ask("GET", "/bucket/public?tagging="))
        .await
        .is(200);
    assert_eq!((answer.element("Key"), answer.element("Value")), ("a", "b"));
    let answer = posted(&world, &[("key", "k"), ("acl", "nonsense")])
        .await
        .is(400);
    assert_eq!(answer.code(), "InvalidArgument");
    let answer = posted(&world, &[("key", "k"), ("tagging", "a=b")])
        .await
        .is(400);
    assert_eq!(answer.code(), "MalformedXML");
}

#[tokio::test]
async fn what_is_not_there_is_refused_in_a_form_too() {
    let world = World::with("bucket").await;
    for field in [
        "x-amz-server-side-encryption",
        "X-Amz-Server-Side-Encryption",
        "x-amz-object-lock-mode",
    ] {
        let answer = posted(&world, &[("key", "k"), (field, "AES256")])
            .await
            .is(501);
        assert_eq!(answer.code(), "NotImplemented");
    }
    world.admin(ask("HEAD", "/bucket/k")).await.is(404);
}

/// A form is good until its policy expires, however long ago it was signed.
#[tokio::test]
async fn a_form_lives_as_long_as_its_policy() {
    let world = World::with("bucket").await;
    let hours_ago = OffsetDateTime::now_utc() - Duration::hours(30);
    let old = form(&world.admin, hours_ago, &[("key", "old")]);
    world.send(old).await.is(204);
}

#[tokio::test]
async fn a_form_is_answered_with_where_its_object_is() {
    let world = World::with("bucket").await;
    let etag = "\"4b3a6218bb3e3a7303e8a171a60fcf92\"";
    let location = format!("http://{HOST}/bucket/a/b%20c");
    for (status, given) in [("200", 200), ("204", 204), ("201", 201)] {
        let fields = [("key", "a/b c"), ("success_action_status", status)];
        let answer = posted(&world, &fields).await.is(given);
        assert_eq!(answer.header("etag"), Some(etag));
        assert_eq!(answer.header("location"), Some(location.as_str()));
        if given == 201 {
            assert_eq!(answer.element("Location"), location);
            assert_eq!(answer.element("ETag").replace("&quot;", "\""), etag);
            assert_eq!(answer.element("Key"), "a/b c");
            assert_eq!(answer.header("content-type"), Some("application/xml"));
        }
    }
    let fields = [
        ("key", "k"),
        ("success_action_redirect", "https://a.test/done"),
    ];
    let answer = posted(&world, &fields).await.is(303);
    let to = answer.header("location").unwrap();
    assert!(
        to.starts_with("https://a.test/done?bucket=bucket&key=k&etag=%22"),
        "{to}"
    );
}

#[tokio::test]
async fn a_completed_upload_says_where_its_object_is() {
    let world = World::with("bucket").await;
    for (host, target, location) in [
        (
            HOST,
            "/bucket/a/b%20c",
            format!("http://{HOST}/bucket/a/b%20c"),
        ),
        (
            "bucket.s3.test",
            "/a/b%20c",
            format!("http://bucket.{HOST}/a/b%20c"),
        ),
    ] {
        let made = world
            .admin(ask("POST", &format!("{target}?uploads=")).host(host))
            .await
            .is(200);
        let id = made.element("UploadId");
        let part = ask("PUT", &format!("{target}?partNumber=1&uploadId={id}")).host(host);
        let part = world.admin(part.body("x")).await.is(200);
        let etag = part.header("etag").unwrap();
        let all = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
        );
        let complete = ask("POST", &format!("{target}?uploadId={id}"))
            .host(host)
            .body(all);
        let answer = world.admin(complete).await.is(200);
        assert_eq!(answer.element("Location"), location);
    }
}
