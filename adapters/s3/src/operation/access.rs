//! Who may do what to a bucket.
//!
//! In this order: the bucket's policy may deny; the owner, and a key whose grant is high enough,
//! may; the policy may allow; a canned ACL may allow. Whoever nothing allows, may not.

use super::{Request, Who};
use crate::rows::{Acl, BucketRow, Level, ObjectRow, PolicyRow, StatementRow};

/// Whether the request may do `action`: its own, or one that is part of it. `object` is the version it
/// would read, where there is one.
pub(super) fn allows(
    bucket: &BucketRow,
    request: &Request,
    action: &str,
    key: Option<&str>,
    level: Level,
    object: Option<&ObjectRow>,
) -> bool {
    let Some(who) = &request.who else {
        return false;
    };
    let said = bucket
        .policy
        .as_ref()
        .map_or(Said::Nothing, |policy| ask(policy, request, action, key));
    if said == Said::Denied {
        return false;
    }
    is_owner(bucket, request)
        || who.level() >= level
        || said == Said::Allowed
        || acl_allows(bucket.acl(), who, action)
        || object.is_some_and(|object| {
            is_object_read(action)
                && match object.acl() {
                    Acl::Private => false,
                    Acl::PublicRead | Acl::PublicReadWrite => true,
                    Acl::AuthenticatedRead => !who.access_key.is_empty(),
                }
        })
}

/// Whether the bucket is the requester's own. Its owner may always change its policy, so that
/// nobody is locked out by a policy.
pub(super) fn is_owner(bucket: &BucketRow, request: &Request) -> bool {
    request.who.as_ref().is_some_and(|who| {
        (!who.access_key.is_empty() && who.access_key == bucket.owner)
            || who.level() == Level::Owner
    })
}

fn is_object_read(action: &str) -> bool {
    matches!(action, "s3:GetObject" | "s3:GetObjectVersion")
}

/// A bucket's ACL speaks about the bucket: listing it, and writing into it.
fn acl_allows(acl: Acl, who: &Who, action: &str) -> bool {
    let lists = matches!(
        action,
        "s3:ListBucket" | "s3:ListBucketVersions" | "s3:ListBucketMultipartUploads"
    );
    let writes = matches!(
        action,
        "s3:PutObject" | "s3:DeleteObject" | "s3:AbortMultipartUpload"
    );
    match acl {
        Acl::Private => false,
        Acl::PublicRead => lists,
        Acl::PublicReadWrite => lists || writes,
        Acl::AuthenticatedRead => lists && !who.access_key.is_empty(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Denied,
    Allowed,
    Nothing,
}

fn ask(policy: &PolicyRow, request: &Request, action: &str, key: Option<&str>) -> Said {
    let who = request.who.as_ref().map_or("", |who| &who.access_key);
    let resource = match key {
        Some(key) => format!("{}/{key}", request.bucket),
        None => request.bucket.clone(),
    };
    let speaks = |statement: &&StatementRow| {
        statement
            .principals
            .iter()
            .any(|principal| principal == "*" || principal == who)
            && statement
                .actions
                .iter()
                .any(|pattern| matches_action(pattern, action))
            && statement
                .resources
                .iter()
                .any(|pattern| matches_pattern(pattern.as_bytes(), resource.as_bytes()))
    };
    let mut speaking = policy.statements.iter().filter(speaks).peekable();
    if speaking.peek().is_none() {
        Said::Nothing
    } else if speaking.any(|statement| statement.deny) {
        Said::Denied
    } else {
        Said::Allowed
    }
}

/// Actions are compared without regard to case.
fn matches_action(pattern: &str, action: &str) -> bool {
    matches_pattern(
        pattern.to_ascii_lowercase().as_bytes(),
        action.to_ascii_lowercase().as_bytes(),
    )
}

/// Whether `text` is what `pattern` describes: `*` is any bytes, `?` is one.
pub(crate) fn matches_pattern(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last `*` does not fit: linear in each retry.
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((after_star, from)) => {
                    p = after_star;
                    t = from + 1;
                    retry = Some((after_star, t));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// Whether a policy gives something to everybody.
pub(crate) fn policy_is_public(policy: &PolicyRow) -> bool {
    policy.statements.iter().any(|statement| {
        !statement.deny
            && statement
                .principals
                .iter()
                .any(|principal| principal == "*")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_policies() {
        for (pattern, text, matches) in [
            ("*", "", true),
            ("b/*", "b/a/b", true),
            ("b/*", "b", false),
            ("b/?", "b/ab", false),
            ("*a*b", "xaxbxb", true),
            ("*a*b", "xaxbxc", false),
            ("", "a", false),
        ] {
            assert_eq!(
                matches_pattern(pattern.as_bytes(), text.as_bytes()),
                matches,
                "{pattern} {text}"
            );
        }
    }

    fn request(who: &str, level: Level, action: &str) -> Request {
        Request {
            who: Some(Who {
                access_key: who.into(),
                level: level.into(),
                ..Who::default()
            }),
            bucket: "b".into(),
            action: action.into(),
            ..Request::default()
        }
    }

    #[test]
    fn a_denial_outweighs_a_grant_and_nothing_is_allowed_unsaid() {
        let statement = |deny, principal: &str, action: &str| StatementRow {
            deny,
            principals: vec![principal.into()],
            actions: vec![action.into()],
            resources: vec!["b/*".into()],
        };
        let bucket = BucketRow {
            owner: "OWNER".into(),
            policy: Some(PolicyRow {
                statements: vec![
                    statement(false, "*", "s3:GetObject"),
                    statement(true, "*", "s3:Delete*"),
                ],
            }),
            ..BucketRow::default()
        };
        let may = |who, level, action, need| {
            let request = request(who, level, action);
            allows(&bucket, &request, action, Some("k"), need, None)
        };
        assert!(may("", Level::Nothing, "s3:GetObject", Level::Read));
        assert!(!may("", Level::Nothing, "s3:PutObject", Level::Write));
        assert!(may("OTHER", Level::Write, "s3:PutObject", Level::Write));
        assert!(!may("OTHER", Level::Read, "s3:PutObject", Level::Write));
        assert!(!may(
            "OWNER",
            Level::Nothing,
            "s3:DeleteObject",
            Level::Write
        ));
        assert!(may("OWNER", Level::Nothing, "s3:PutObject", Level::Write));
    }
}
