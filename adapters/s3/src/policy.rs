//! Bucket policies: the JSON that clients send, compiled to what a request can be held against.
//!
//! Understood are `Effect`, `Principal` (`*`, or access keys under `AWS`), `Action` and `Resource`.
//! What would narrow a statement and is not understood (`Condition`, `NotAction` …) makes the policy
//! refused: a policy that means less than it says must not be taken.

use serde_json::Value;

use crate::rows::{PolicyRow, StatementRow};

/// The largest policy text.
const MOST_BYTES: usize = 20 << 10;

/// Compiles the policy of `bucket`.
pub(crate) fn compile(bucket: &str, text: &str) -> Result<PolicyRow, String> {
    if text.len() > MOST_BYTES {
        return Err(format!("a policy has at most {MOST_BYTES} bytes"));
    }
    let policy: Value =
        serde_json::from_str(text).map_err(|error| format!("the policy is not JSON: {error}"))?;
    let fields = policy.as_object().ok_or("a policy is a JSON object")?;
    for name in fields.keys() {
        if !matches!(name.as_str(), "Version" | "Id" | "Statement") {
            return Err(format!("unknown policy element {name}"));
        }
    }
    let statements = match fields.get("Statement") {
        Some(Value::Array(statements)) => statements.clone(),
        Some(statement @ Value::Object(_)) => vec![statement.clone()],
        _ => return Err("a policy has a Statement".to_owned()),
    };
    let statements = statements
        .iter()
        .map(|statement| compile_statement(bucket, statement))
        .collect::<Result<Vec<_>, _>>()?;
    if statements.is_empty() {
        return Err("a policy has at least one statement".to_owned());
    }
    Ok(PolicyRow { statements })
}

fn compile_statement(bucket: &str, statement: &Value) -> Result<StatementRow, String> {
    let fields = statement
        .as_object()
        .ok_or("a statement is a JSON object")?;
    for name in fields.keys() {
        match name.as_str() {
            "Sid" | "Effect" | "Principal" | "Action" | "Resource" => {}
            "Condition" | "NotAction" | "NotResource" | "NotPrincipal" => {
                return Err(format!("{name} is not implemented (docs/s3.md)"));
            }
            other => return Err(format!("unknown policy element {other}")),
        }
    }
    let deny = match fields.get("Effect").and_then(Value::as_str) {
        Some("Allow") => false,
        Some("Deny") => true,
        _ => return Err("Effect is Allow or Deny".to_owned()),
    };
    let principals = match fields.get("Principal") {
        Some(Value::String(all)) if all == "*" => vec!["*".to_owned()],
        Some(Value::Object(kinds)) if kinds.len() == 1 => {
            strings(kinds.get("AWS"), "Principal.AWS")?
                .into_iter()
                .map(principal)
                .collect()
        }
        _ => return Err("Principal is \"*\" or {\"AWS\": access keys}".to_owned()),
    };
    let actions = strings(fields.get("Action"), "Action")?;
    for action in &actions {
        if action != "*" && !action.to_ascii_lowercase().starts_with("s3:") {
            return Err(format!("the action {action} is not one of s3:"));
        }
    }
    let resources = strings(fields.get("Resource"), "Resource")?
        .into_iter()
        .map(|resource| {
            let path = resource
                .strip_prefix("arn:aws:s3:::")
                .map_or_else(|| resource.clone(), str::to_owned);
            let named = path.split('/').next().unwrap_or_default();
            let ours = path == "*"
                || crate::operation::matches_pattern(named.as_bytes(), bucket.as_bytes());
            if ours {
                Ok(path)
            } else {
                Err(format!(
                    "the resource {resource} is not in the bucket {bucket}"
                ))
            }
        })
        .collect::<Result<Vec<_>, String>>()?;
    Ok(StatementRow {
        deny,
        principals,
        actions,
        resources,
    })
}

/// `arn:aws:iam::…:user/KEY` and `KEY` are the same.
fn principal(text: String) -> String {
    match text.rsplit_once(":user/") {
        Some((arn, key)) if arn.starts_with("arn:aws:iam:") => key.to_owned(),
        _ => text,
    }
}

fn strings(value: Option<&Value>, name: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("{name} is a text or a list of texts");
    match value {
        Some(Value::String(text)) => Ok(vec![text.clone()]),
        Some(Value::Array(texts)) if !texts.is_empty() => texts
            .iter()
            .map(|text| text.as_str().map(str::to_owned).ok_or_else(wrong))
            .collect(),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_read_is_compiled_and_what_is_not_understood_is_refused() {
        let policy = compile(
            "b",
            r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*",
                "Action":["s3:GetObject"],"Resource":"arn:aws:s3:::b/*"}]}"#,
        )
        .unwrap();
        assert_eq!(policy.statements[0].resources, ["b/*"]);
        for (wrong, why) in [
            (
                r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":"arn:aws:s3:::other/*"}]}"#,
                "not in the bucket",
            ),
            (
                r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":"b","Condition":{}}]}"#,
                "Condition",
            ),
            (r#"{"Statement":[]}"#, "at least one"),
            ("[]", "object"),
            ("{", "JSON"),
        ] {
            let error = compile("b", wrong).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
