//! Scripts, answered as Redis answers them; and what the sandbox and its limits keep out.

use std::time::{Duration, Instant};

use bytes::Bytes;
use leadline_raft::Context;

use super::{Oracle, Ours, Value};
use crate::operation::RedisOperation;
use crate::reply::{Reply, Resp};
use crate::rows::invariants;
use crate::script;

impl Ours {
    /// EVAL as the data plane sees it.
    fn eval(&mut self, body: &str, keys: &[&str], args: &[&str]) -> Value {
        self.run(&eval(false, body, keys, args))
    }

    /// The failure of a script that does not come to its end.
    fn stopped(&mut self, body: &str) -> leadline_kv::RowError {
        let args = eval(false, body, &[], &[]);
        let operation = RedisOperation::from_args(args, 0, Resp::V2).unwrap();
        leadline_kv::Operation::evaluate(&operation, &mut self.rows).unwrap_err()
    }
}

fn eval(read_only: bool, body: &str, keys: &[&str], args: &[&str]) -> Vec<Bytes> {
    let text = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let mut rest = vec![text(&keys.len().to_string())];
    rest.extend(keys.iter().chain(args).map(|item| text(item)));
    script::run_args(read_only, text(body), None, &rest)
}

fn ours() -> Ours {
    Ours::at_millis(1_700_000_000_000)
}

/// The line of an error that a script answers.
fn error(value: &Value) -> String {
    assert!(value.is_error(), "not an error: {value:?}");
    String::from_utf8_lossy(value.text().unwrap()).into_owned()
}

/// One script a line; `--` begins a comment.
const SCRIPTS: &str = include_str!("scripts.txt");

#[test]
fn scripts_answer_as_redis_does() {
    let Some(mut oracle) = Oracle::start() else {
        return;
    };
    let mut differences = Vec::new();
    for resp in [Resp::V2, Resp::V3] {
        oracle.reset(resp);
        let mut ours = Ours::at_millis(oracle.unix_millis());
        ours.resp = resp;
        for line in SCRIPTS.lines() {
            if line.is_empty() || line.starts_with("--") {
                continue;
            }
            // A line break in a script is written as a paragraph sign.
            let body = line.replace('¶', "\n");
            let keys = ["k1", "{k1}2"];
            let args = ["a1", "2", "3.5"];
            let mut command: Vec<Bytes> = vec!["EVAL".into(), body.clone().into(), "2".into()];
            command.extend(keys.iter().chain(&args).map(|item| Bytes::from(*item)));
            let expected = oracle.run(&command);
            ours.rows
                .set_context(Context::with_timeout(Duration::from_secs(5)));
            let got = ours.eval(&body, &keys, &args);
            if got != expected {
                differences.push(format!(
                    "{resp:?} {line}\n     ours: {got:?}\n    Redis: {expected:?}"
                ));
            }
        }
        invariants::check(&mut ours.rows);
    }
    assert!(
        differences.is_empty(),
        "{} differences\n{}",
        differences.len(),
        differences.join("\n")
    );
}

/// All commands of a script have one stamp: what makes a collection new must not be the stamp.
#[test]
fn a_collection_deleted_and_made_again_in_one_script_has_its_new_elements_only() {
    let mut ours = ours();
    let value = ours.eval(
        "redis.call('sadd',KEYS[1],'old','older') redis.call('del',KEYS[1]) \
         redis.call('sadd',KEYS[1],'new') redis.call('rename',KEYS[1],KEYS[2]) \
         redis.call('sadd',KEYS[1],'other') \
         return {redis.call('smembers',KEYS[1]), redis.call('smembers',KEYS[2])}",
        &["{a}1", "{a}2"],
        &[],
    );
    assert_eq!(format!("{value:?}"), r#"*[*["other"], *["new"]]"#);
    invariants::check(&mut ours.rows);
}

#[test]
fn scripts_share_nothing_through_the_vm() {
    let mut ours = ours();
    for attempt in [
        "leak=1",
        "_G.leak=1",
        "rawset(_G,'leak',1)",
        "redis.leak=1",
        "rawset(redis,'leak',1)",
        "string.leak=1",
        "getmetatable('').__index=1",
        "getmetatable('').leak=1",
        "setmetatable(_G,{})",
        "setmetatable(redis,nil)",
        "getmetatable(_G).__newindex=nil",
        "getmetatable(redis).__index.leak=1",
        "local f=loadstring('leak=1') f()",
        "local f=load(function() return 'leak=1' end) f()",
        "coroutine.wrap(function() leak=1 end)()",
        "for k,v in pairs(_G) do if type(v)=='table' then v.leak=1 end end",
        "local next,real=pairs(string) real.leak=1",
        "cjson.leak=1",
        "KEYS=nil",
        "ARGV={1}",
        "return setfenv(1,{})",
        "return getfenv()",
        "return debug.getinfo(1)",
        "return io.open('/etc/passwd')",
        "return os.execute('true')",
        "return require('os')",
        "return dofile('x')",
        "return newproxy()",
        "return package.loaded",
        "return print('x')",
    ] {
        let value = ours.eval(attempt, &[], &[]);
        assert!(value.is_error(), "{attempt}: {value:?}");
    }
    // What no metamethod can refuse is undone.
    ours.eval("table.insert(string, 'leak')", &[], &[]);
    ours.eval("table.insert(_G, 'leak')", &[], &[]);
    for (look, found) in [
        (
            "return {rawget(_G,'leak')==nil and 1, rawget(_G,1)==nil and 1}",
            "*[:1, :1]",
        ),
        (
            "return {rawget(string,1)==nil and 1, rawget(string,'leak')==nil and 1}",
            "*[:1, :1]",
        ),
        (
            "return {#KEYS, #ARGV, string.rep('x',2)}",
            r#"*[:0, :0, "xx"]"#,
        ),
        ("return tostring(loadstring('\\27Lua'))", r#""nil""#),
    ] {
        assert_eq!(format!("{:?}", ours.eval(look, &[], &[])), found, "{look}");
    }
}

#[test]
fn a_script_is_stopped_at_its_deadline_whatever_it_catches() {
    for body in [
        "while true do end",
        "while true do pcall(function() while true do end end) end",
        "local function f() pcall(f) while true do end end f()",
        "while true do coroutine.wrap(function() while true do end end)() end",
        "while true do pcall(coroutine.wrap(function() while true do end end)) end",
        "while true do xpcall(function() while true do end end, function() while true do end end) end",
        "setmetatable({}, {__index=function(t,k) while true do end end}).x()",
        "while true do pcall(redis.call,'ping') end",
        "while true do redis.pcall('set','k',1) end",
        "string.gsub(string.rep('a',100),'a',function() while true do end end)",
        "table.sort({1,2,3},function() while true do end end)",
        "return string.find(string.rep('a',100000),string.rep('a*',30)..'b')",
        "return string.match(string.rep('a',200000),'.-.-.-.-.-b')",
        "for i=1,1e9 do local s=string.rep('',2^30) end",
        "local t={} while true do t[#t+1]=1 if #t>1e5 then t={} end end",
        "redis.call('set','k',1) while true do end",
    ] {
        let mut ours = ours();
        ours.rows
            .set_context(Context::with_timeout(Duration::from_millis(60)));
        let began = Instant::now();
        assert_eq!(ours.stopped(body), leadline_kv::RowError::Ended, "{body}");
        assert!(
            began.elapsed() < Duration::from_millis(1500),
            "{body} took {:?}",
            began.elapsed()
        );
        // The next script on this thread has a VM of its own.
        ours.rows.set_context(Context::with_timeout(Duration::MAX));
        assert_eq!(ours.eval("return 7", &[], &[]).integer(), Some(7));
    }
}

#[test]
fn memory_depth_and_replies_are_bounded() {
    let mut ours = ours();
    for bomb in [
        "return string.rep('x',2^30)",
        "local s='x' while true do s=s..s end",
        "local t={} while true do t[#t+1]={1,2,3} end",
        "local t={} for i=1,1e9 do t[i]=i end",
        "local s=string.rep('x',2^20) local t={} for i=1,1000 do t[i]=s end return t",
        "local s=string.rep('x',2^20) local t={} for i=1,1000 do t[i]=s end return cjson.encode(t)",
        "local s=string.rep('x',2^20) local t={} for i=1,1000 do t[i]=s end return cmsgpack.pack(t)",
        "local s=string.rep('x',2^20) local t={} for i=1,1000 do t[i]=s end return table.concat(t)",
        "local s=string.rep('x',2^20) return struct.pack(string.rep('s',100),unpack((function() local t={} for i=1,100 do t[i]=s end return t end)()))",
        "local t={} t[1]=t return t",
        "local function f() return 1+f() end return f()",
        "local t={} for i=1,100000 do t={t} end return t",
        "local t={} for i=1,100000 do t={t} end return cjson.encode(t)",
        "return cjson.decode(string.rep('[',100000))",
        "return cmsgpack.unpack(string.rep('\\145',100000))",
        "return unpack({},1,1e8)",
        "return unpack({},-2147483648,2147483647)",
        "return string.find('aaa',string.rep('a?',100000))",
        "return string.find('aaa',string.rep('(',100000))",
        "return loadstring(string.rep('(',100000))()",
        "return loadstring('return '..string.rep('{',100000)..string.rep('}',100000))()",
    ] {
        ours.rows
            .set_context(Context::with_timeout(Duration::from_secs(20)));
        let value = ours.eval(bomb, &[], &[]);
        let shown = format!("{value:?}");
        // Redis answers pcall's failure; either is an end.
        assert!(
            value.is_error() || shown.len() < 200,
            "{bomb}: {} bytes",
            shown.len()
        );
        assert_eq!(ours.eval("return 7", &[], &[]).integer(), Some(7), "{bomb}");
    }
}

#[test]
fn a_failing_script_keeps_what_it_did() {
    let mut ours = ours();
    let value = ours.eval("redis.call('set','k','v') error('x')", &[], &[]);
    assert!(error(&value).starts_with("ERR user_script:1: x script: "));
    assert_eq!(ours.call("GET k").text().unwrap(), "v");
}

#[test]
fn read_only_scripts_cannot_write() {
    let mut ours = ours();
    let value = ours.run(&eval(true, "return redis.call('set','k',1)", &[], &[]));
    assert!(error(&value).contains("Write commands are not allowed from read-only scripts."));
    let value = ours.eval(
        "#!lua flags=no-writes\nreturn redis.call('set','k',1)",
        &[],
        &[],
    );
    assert!(error(&value).contains("Write commands are not allowed from read-only scripts."));
    let value = ours.run(&eval(true, "#!lua\nreturn 1", &[], &[]));
    assert!(error(&value).contains("Can not execute a script with write flag"));
    assert_eq!(ours.eval("#!lua\nreturn 1", &[], &[]).integer(), Some(1));
    let value = ours.eval("#!lua\n\nerror('third')", &[], &[]);
    assert!(error(&value).contains("user_script:3: third"));
}

#[test]
fn random_numbers_differ_between_runs_and_blocking_commands_do_not_wait() {
    let mut ours = ours();
    let mut run = || format!("{:?}", ours.eval("return math.random(1000000)", &[], &[]));
    assert_ne!((run(), run()), (run(), run()));
    let value = ours.eval("return redis.call('blpop','none',0)", &[], &[]);
    assert!(value.is_null());
    let value = ours.eval(
        "redis.call('rpush','l','a') return redis.call('blpop','l',0)",
        &[],
        &[],
    );
    assert_eq!(format!("{value:?}"), r#"*["l", "a"]"#);
}

#[test]
fn a_reply_of_a_script_can_be_any_kind() {
    let mut out = bytes::BytesMut::new();
    crate::reply::encode(&Reply::BigNumber("123".into()), Resp::V3, &mut out);
    crate::reply::encode(&Reply::Status("FINE".into()), Resp::V3, &mut out);
    assert_eq!(&out[..], b"(123\r\n+FINE\r\n");
}
