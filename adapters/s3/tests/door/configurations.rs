//! Lifecycle rules, tags and CORS of buckets.

use crate::world::{World, ask};

const SMALLEST: &str = "x-amz-transition-default-minimum-object-size";

fn rules(rules: &str) -> String {
    format!("<LifecycleConfiguration>{rules}</LifecycleConfiguration>")
}

fn rule(content: &str) -> String {
    rules(&format!("<Rule><Status>Enabled</Status>{content}</Rule>"))
}

/// Terraform asks until it reads what it wrote, and AWS always says it.
#[tokio::test]
async fn the_smallest_object_of_transitions_is_kept_and_told() {
    let world = World::with("bucket").await;
    let all = rule("<Filter/><Expiration><Days>1</Days></Expiration>");
    let put = || ask("PUT", "/bucket?lifecycle=").body(&all);
    let get = || ask("GET", "/bucket?lifecycle=");
    let answer = world.admin(put()).await.is(200);
    assert_eq!(answer.header(SMALLEST), Some("all_storage_classes_128K"));
    let answer = world.admin(get()).await.is(200);
    assert_eq!(answer.header(SMALLEST), Some("all_storage_classes_128K"));
    let other = put().header(SMALLEST, "varies_by_storage_class");
    let answer = world.admin(other).await.is(200);
    assert_eq!(answer.header(SMALLEST), Some("varies_by_storage_class"));
    let answer = world.admin(get()).await.is(200);
    assert_eq!(answer.header(SMALLEST), Some("varies_by_storage_class"));
    let wrong = put().header(SMALLEST, "none");
    let answer = world.admin(wrong).await.is(400);
    assert_eq!(answer.code(), "InvalidRequest");
}

#[tokio::test]
async fn lifecycle_rules_that_aws_refuses_are_refused() {
    let world = World::with("bucket").await;
    let days = "<Expiration><Days>1</Days></Expiration>";
    let abort = "<AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation></AbortIncompleteMultipartUpload>";
    let tag = "<Tag><Key>a</Key><Value>b</Value></Tag>";
    let marker = "<ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker>";
    let twice = format!("<Rule><ID>a</ID><Status>Enabled</Status><Filter/>{days}</Rule>").repeat(2);
    let long = "i".repeat(256);
    for (why, text, code) in [
        ("an ID twice", rules(&twice), "InvalidArgument"),
        (
            "a long ID",
            rule(&format!("<ID>{long}</ID><Filter/>{days}")),
            "InvalidArgument",
        ),
        (
            "days and a date",
            rule(
                "<Filter/><Expiration><Days>1</Days><Date>2030-01-01T00:00:00Z</Date></Expiration>",
            ),
            "MalformedXML",
        ),
        (
            "an expiration of nothing",
            rule("<Filter/><Expiration></Expiration>"),
            "MalformedXML",
        ),
        (
            "markers and days",
            rule(&format!(
                "<Filter/><Expiration><Days>1</Days>{marker}</Expiration>"
            )),
            "MalformedXML",
        ),
        (
            "markers with a tag",
            rule(&format!(
                "<Filter>{tag}</Filter><Expiration>{marker}</Expiration>"
            )),
            "InvalidRequest",
        ),
        (
            "not at midnight",
            rule("<Filter/><Expiration><Date>2030-01-01T01:00:00Z</Date></Expiration>"),
            "InvalidArgument",
        ),
        ("no filter", rule(days), "MalformedXML"),
        (
            "a filter and a prefix",
            rule(&format!("<Filter/><Prefix>a</Prefix>{days}")),
            "MalformedXML",
        ),
        (
            "two without And",
            rule(&format!("<Filter><Prefix>a</Prefix>{tag}</Filter>{days}")),
            "MalformedXML",
        ),
        (
            "an And beside another",
            rule(&format!(
                "<Filter><Prefix>a</Prefix><And><Prefix>b</Prefix>{tag}</And></Filter>{days}"
            )),
            "MalformedXML",
        ),
        (
            "an And of one",
            rule(&format!(
                "<Filter><And><Prefix>a</Prefix></And></Filter>{days}"
            )),
            "MalformedXML",
        ),
        (
            "uploads with a tag",
            rule(&format!("<Filter>{tag}</Filter>{abort}")),
            "InvalidRequest",
        ),
        (
            "uploads with a size",
            rule(&format!(
                "<Filter><ObjectSizeGreaterThan>1</ObjectSizeGreaterThan></Filter>{abort}"
            )),
            "InvalidRequest",
        ),
        (
            "no days of older versions",
            rule("<Filter/><NoncurrentVersionExpiration></NoncurrentVersionExpiration>"),
            "MalformedXML",
        ),
        (
            "no days of uploads",
            rule("<Filter/><AbortIncompleteMultipartUpload></AbortIncompleteMultipartUpload>"),
            "MalformedXML",
        ),
        (
            "sizes between which nothing is",
            rule(&format!(
                "<Filter><And><ObjectSizeGreaterThan>9</ObjectSizeGreaterThan><ObjectSizeLessThan>9</ObjectSizeLessThan></And></Filter>{days}"
            )),
            "InvalidRequest",
        ),
    ] {
        let answer = world
            .admin(ask("PUT", "/bucket?lifecycle=").body(text))
            .await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (400, code),
            "{why}: {answer:?}"
        );
    }
    for (why, text) in [
        (
            "a prefix of the old form",
            rule(&format!("<Prefix></Prefix>{days}")),
        ),
        (
            "a date",
            rule("<Filter/><Expiration><Date>2030-01-01T00:00:00.000Z</Date></Expiration>"),
        ),
        (
            "an And of two",
            rule(&format!(
                "<Filter><And><Prefix>a</Prefix>{tag}</And></Filter>{days}"
            )),
        ),
        (
            "markers alone",
            rule(&format!(
                "<Filter><Prefix>a</Prefix></Filter><Expiration>{marker}</Expiration>{abort}"
            )),
        ),
    ] {
        let answer = world
            .admin(ask("PUT", "/bucket?lifecycle=").body(text))
            .await;
        assert_eq!(answer.status.as_u16(), 200, "{why}: {answer:?}");
    }
    let answer = world.admin(ask("GET", "/bucket?lifecycle=")).await.is(200);
    assert!(
        !answer.element("ID").is_empty(),
        "an ID is made: {answer:?}"
    );
}

#[tokio::test]
async fn tags_of_aws_and_of_other_characters_are_invalid() {
    let world = World::with("bucket").await;
    world
        .admin(ask("PUT", "/bucket/key").body("x"))
        .await
        .is(200);
    let tagging = |key: &str, value: &str| {
        format!(
            "<Tagging><TagSet><Tag><Key>{key}</Key><Value>{value}</Value></Tag></TagSet></Tagging>"
        )
    };
    for (key, value) in [("aws:a", "b"), ("a{}", "b"), ("a", "b!"), ("a", "b\u{7}")] {
        for target in ["/bucket/key?tagging=", "/bucket?tagging="] {
            let put = ask("PUT", target).body(tagging(key, value));
            let answer = world.admin(put).await.is(400);
            assert_eq!(
                answer.code(),
                if value == "b\u{7}" {
                    answer.code()
                } else {
                    "InvalidTag"
                },
                "{key}={value}"
            );
        }
    }
    let fine = tagging("Größe 1+-=._:/@", "東京 aws:");
    let put = ask("PUT", "/bucket/key?tagging=").body(fine);
    world.admin(put).await.is(200);
}

#[tokio::test]
async fn a_bucket_is_made_with_the_tags_it_is_given() {
    let world = World::new().await;
    let made = |tags: &str| {
        format!(
            "<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint>{tags}</CreateBucketConfiguration>"
        )
    };
    let tags = "<Tags><Tag><Key>team</Key><Value>blue</Value></Tag></Tags>";
    world
        .admin(ask("PUT", "/tagged").body(made(tags)))
        .await
        .is(200);
    let answer = world.admin(ask("GET", "/tagged?tagging=")).await.is(200);
    assert_eq!(
        (answer.element("Key"), answer.element("Value")),
        ("team", "blue")
    );
    let answer = world.admin(ask("GET", "/tagged?location=")).await.is(200);
    assert!(answer.text.contains("eu-west-1"), "{answer:?}");
    let wrong = "<Tags><Tag><Key>aws:team</Key><Value>blue</Value></Tag></Tags>";
    let answer = world
        .admin(ask("PUT", "/other").body(made(wrong)))
        .await
        .is(400);
    assert_eq!(answer.code(), "InvalidTag");
    world.admin(ask("HEAD", "/other")).await.is(404);
    world
        .admin(ask("PUT", "/plain").body(made("")))
        .await
        .is(200);
    world.admin(ask("GET", "/plain?tagging=")).await.is(404);
}

/// As AWS: what names an origin lets its cookies through, what names all of them does not.
#[tokio::test]
async fn credentials_are_allowed_to_origins_that_are_named() {
    let world = World::with("bucket").await;
    for (allowed, shown) in [("https://a.test", Some("true")), ("*", None)] {
        let cors = format!(
            "<CORSConfiguration><CORSRule><AllowedOrigin>{allowed}</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule></CORSConfiguration>"
        );
        world
            .admin(ask("PUT", "/bucket?cors=").body(cors))
            .await
            .is(200);
        let preflight = ask("OPTIONS", "/bucket/key")
            .header("origin", "https://a.test")
            .header("access-control-request-method", "GET");
        let read = ask("GET", "/bucket/key").header("origin", "https://a.test");
        for answer in [
            world.send(preflight).await.is(200),
            world.admin(read).await.is(404),
        ] {
            let said = answer.header("access-control-allow-credentials");
            assert_eq!(said, shown, "{allowed}");
        }
    }
}
