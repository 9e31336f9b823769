//! GET and HEAD: ranges, conditions, headers that are asked for.

use crate::world::{World, ask};

async fn world() -> World {
    let world = World::with("bucket").await;
    world
        .admin(ask("PUT", "/bucket/key").body("0123456789"))
        .await
        .is(200);
    world
}

#[tokio::test]
async fn a_head_of_a_part_of_an_object_is_206_as_its_get_is() {
    let world = world().await;
    for method in ["GET", "HEAD"] {
        let some = ask(method, "/bucket/key").header("range", "bytes=2-4");
        let answer = world.admin(some).await.is(206);
        assert_eq!(answer.header("content-range"), Some("bytes 2-4/10"));
        world
            .admin(ask(method, "/bucket/key?partNumber=1"))
            .await
            .is(206);
        world.admin(ask(method, "/bucket/key")).await.is(200);
    }
}

/// RFC 9110, 14.2: a range that is not understood is as good as none.
#[tokio::test]
async fn ranges_that_are_not_understood_are_ignored() {
    let world = world().await;
    for range in [
        "bytes=0-1,3-4",
        "bytes=5-3",
        "bytes=abc",
        "items=0-5",
        "bytes=",
        "0-5",
    ] {
        for method in ["GET", "HEAD"] {
            let some = ask(method, "/bucket/key").header("range", range);
            let answer = world.admin(some).await.is(200);
            assert_eq!(answer.header("content-length"), Some("10"), "{range}");
        }
        let some = ask("GET", "/bucket/key").presigned(&world.admin, 60);
        let anyone = world.send(some.header("range", range)).await.is(200);
        assert_eq!(anyone.text, "0123456789");
        let other = ask("GET", "/bucket/key").header("range", range);
        world.send(other).await.is(403);
    }
    for (range, status) in [
        ("bytes=10-", 416),
        ("bytes=99999999999999999999-", 416),
        ("bytes=-0", 416),
        ("bytes=0-99999999999999999999", 206),
        ("bytes=-99999999999999999999", 206),
    ] {
        let some = ask("GET", "/bucket/key").header("range", range);
        world.admin(some).await.is(status);
    }
}

/// RFC 9110, 13.1.5.
#[tokio::test]
async fn a_range_is_given_only_of_what_if_range_names() {
    let world = world().await;
    let head = world.admin(ask("HEAD", "/bucket/key")).await.is(200);
    let etag = head.header("etag").unwrap();
    let date = head.header("last-modified").unwrap();
    for (condition, status) in [
        (etag, 206),
        (date, 206),
        ("\"other\"", 200),
        (&format!("W/{etag}"), 200),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 200),
        ("nonsense", 200),
    ] {
        let some = ask("GET", "/bucket/key")
            .header("range", "bytes=2-4")
            .header("if-range", condition);
        let answer = world.admin(some).await.is(status);
        let text = if status == 206 { "234" } else { "0123456789" };
        assert_eq!(answer.text, text, "{condition}");
    }
    let beyond = ask("GET", "/bucket/key")
        .header("range", "bytes=99-")
        .header("if-range", "\"other\"");
    world.admin(beyond).await.is(200);
}

/// AWS keeps the text: `0` and `-1` are old ways to say that it has expired.
#[tokio::test]
async fn expires_is_kept_as_it_is_given() {
    let world = world().await;
    for expires in ["0", "-1", "Sun, 06 Nov 1994 08:49:37 GMT", "tomorrow"] {
        let put = ask("PUT", "/bucket/key")
            .header("expires", expires)
            .body("x");
        world.admin(put).await.is(200);
        for method in ["GET", "HEAD"] {
            let answer = world.admin(ask(method, "/bucket/key")).await.is(200);
            assert_eq!(answer.header("expires"), Some(expires));
        }
        let copy = ask("PUT", "/bucket/copy").header("x-amz-copy-source", "/bucket/key");
        world.admin(copy).await.is(200);
        let answer = world.admin(ask("GET", "/bucket/copy")).await.is(200);
        assert_eq!(answer.header("expires"), Some(expires));
        let begin = ask("POST", "/bucket/parts?uploads=").header("expires", expires);
        world.admin(begin).await.is(200);
    }
    let asked = "/bucket/key?response-expires=Sun%2C%2006%20Nov%201994%2008%3A49%3A37%20GMT";
    let answer = world.admin(ask("GET", asked)).await.is(200);
    assert_eq!(
        answer.header("expires"),
        Some("Sun, 06 Nov 1994 08:49:37 GMT")
    );
}

/// RFC 9110, 5.6.7 and 13.1.3: three forms of dates are read, and a condition on none of them is
/// no condition.
#[tokio::test]
async fn dates_of_conditions_have_three_forms_and_wrong_ones_are_ignored() {
    let world = world().await;
    for date in [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    ] {
        let changed = |name| ask("GET", "/bucket/key").header(name, date);
        world.admin(changed("if-modified-since")).await.is(200);
        world.admin(changed("if-unmodified-since")).await.is(412);
    }
    for name in ["if-modified-since", "if-unmodified-since"] {
        for date in ["yesterday", "0", "1994-11-06T08:49:37Z"] {
            let asked = ask("GET", "/bucket/key").header(name, date);
            world.admin(asked).await.is(200);
        }
    }
}

#[tokio::test]
async fn errors_have_the_headers_of_their_kind() {
    let world = world().await;
    let head = world.admin(ask("HEAD", "/bucket/key")).await.is(200);
    let etag = head.header("etag").unwrap();
    for method in ["GET", "HEAD"] {
        let same = ask(method, "/bucket/key").header("if-none-match", etag);
        let answer = world.admin(same).await.is(304);
        assert_eq!(answer.header("content-length"), None);
        assert_eq!(answer.header("content-type"), None);
        assert_eq!(answer.header("etag"), Some(etag));
        assert_eq!(answer.text, "");
    }
    let versions = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    world
        .admin(ask("PUT", "/bucket?versioning=").body(versions))
        .await
        .is(200);
    let gone = world.admin(ask("DELETE", "/bucket/key")).await.is(204);
    let id = gone.header("x-amz-version-id").unwrap();
    let answer = world.admin(ask("GET", "/bucket/key")).await.is(404);
    assert_eq!(answer.header("content-type"), Some("application/xml"));
    assert_eq!(answer.header("x-amz-delete-marker"), Some("true"));
    let marker = ask("GET", &format!("/bucket/key?versionId={id}"));
    let answer = world.admin(marker).await.is(405);
    assert_eq!(answer.header("content-type"), Some("application/xml"));
    assert!(answer.header("last-modified").is_some(), "{answer:?}");
    assert_eq!(answer.header("allow"), Some("DELETE"));
}

#[tokio::test]
async fn headers_that_are_asked_for_are_given_to_who_signs() {
    let world = world().await;
    let asked = "/bucket/key?response-content-type=text%2Fx&response-cache-control=no-store&response-content-disposition=inline&response-content-encoding=gzip&response-content-language=de&response-expires=Sun%2C%2006%20Nov%201994%2008%3A49%3A37%20GMT";
    for method in ["GET", "HEAD"] {
        let answer = world.admin(ask(method, asked)).await.is(200);
        for (name, value) in [
            ("content-type", "text/x"),
            ("cache-control", "no-store"),
            ("content-disposition", "inline"),
            ("content-encoding", "gzip"),
            ("content-language", "de"),
            ("expires", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{method}");
        }
    }
    let open = ask("PUT", "/bucket/key")
        .header("x-amz-acl", "public-read")
        .body("x");
    world.admin(open).await.is(200);
    world.send(ask("GET", "/bucket/key")).await.is(200);
    let answer = world.send(ask("GET", asked)).await.is(400);
    assert_eq!(answer.code(), "InvalidRequest");
    world.send(ask("HEAD", asked)).await.is(400);
    // However it is written.
    let written = asked.replace("response-content-type", "respons%65-content-type");
    let written = &written[..written.find('&').unwrap()];
    world.send(ask("GET", written)).await.is(400);
}

#[tokio::test]
async fn attributes_have_an_etag_without_quotes() {
    let world = world().await;
    let asked =
        ask("GET", "/bucket/key?attributes=").header("x-amz-object-attributes", "ETag,ObjectSize");
    let answer = world.admin(asked).await.is(200);
    assert_eq!(answer.element("ETag"), "781e5e245d69b566979b86e28d23f2c7");
    assert_eq!(answer.element("ObjectSize"), "10");
    let length = answer.header("content-length").map(str::to_owned);
    assert!(length.is_none_or(|length| length == answer.text.len().to_string()));
}
