//! Scripts and functions through raw sockets: what the connection does for them.

mod common;

use common::{Client, Server, request};

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

async fn call(client: &mut Client, args: &[&str], expected: &str) {
    let args: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
    client.send(request(&args)).await;
    client.expect(expected).await;
}

const GET: &str = "return redis.call('get',KEYS[1])";
const GET_SHA: &str = "fd758d1589d044dd850a6f05d52f2eefd27f033f";
const NOSCRIPT: &str = "-NOSCRIPT No matching script. Please use EVAL.\r\n";

#[tokio::test]
async fn a_script_is_known_by_its_digest_once_it_was_evaluated_or_loaded() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.ask("SET k v", "+OK\r\n").await;
    call(&mut client, &["EVALSHA", GET_SHA, "1", "k"], NOSCRIPT).await;
    call(&mut client, &["EVALSHA", "short", "1", "k"], NOSCRIPT).await;
    call(
        &mut client,
        &["SCRIPT", "EXISTS", GET_SHA, "x"],
        "*2\r\n:0\r\n:0\r\n",
    )
    .await;
    call(&mut client, &["EVAL", GET, "1", "k"], "$1\r\nv\r\n").await;
    call(&mut client, &["EVALSHA", GET_SHA, "1", "k"], "$1\r\nv\r\n").await;
    let upper = GET_SHA.to_uppercase();
    call(
        &mut client,
        &["EVALSHA_RO", &upper, "1", "k"],
        "$1\r\nv\r\n",
    )
    .await;
    call(&mut client, &["SCRIPT", "FLUSH"], "+OK\r\n").await;
    call(&mut client, &["EVALSHA", GET_SHA, "1", "k"], NOSCRIPT).await;
    call(&mut client, &["SCRIPT", "LOAD", GET], &bulk(GET_SHA)).await;
    call(&mut client, &["SCRIPT", "EXISTS", GET_SHA], "*1\r\n:1\r\n").await;
    call(&mut client, &["FLUSHALL"], "+OK\r\n").await;
    call(&mut client, &["EVALSHA", GET_SHA, "1", "k"], "$-1\r\n").await;
    call(
        &mut client,
        &["SCRIPT", "LOAD", "return ("],
        "-ERR Error compiling script (new function): user_script:1: unexpected symbol near '<eof>'\r\n",
    )
    .await;
    for (args, error) in [
        (
            ["EVAL", "return 1", "x"],
            "-ERR value is not an integer or out of range\r\n",
        ),
        (
            ["EVAL", "return 1", "-1"],
            "-ERR Number of keys can't be negative\r\n",
        ),
        (
            ["EVAL", "return 1", "1"],
            "-ERR Number of keys can't be greater than number of args\r\n",
        ),
    ] {
        call(&mut client, &args, error).await;
    }
    server.stop().await;
}

/// What stands in one write is begun in order, also where a script must be looked for first.
#[tokio::test]
async fn scripts_in_a_pipeline_keep_their_place() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let incr = "return redis.call('incr',KEYS[1])";
    let mut bytes = Vec::new();
    bytes.extend(request(&[b"EVALSHA", GET_SHA.as_bytes(), b"1", b"n"]));
    bytes.extend(request(&[b"SCRIPT", b"LOAD", GET.as_bytes()]));
    bytes.extend(request(&[b"EVAL", incr.as_bytes(), b"1", b"n"]));
    bytes.extend(request(&[b"EVALSHA", GET_SHA.as_bytes(), b"1", b"n"]));
    bytes.extend(request(&[b"INCR", b"n"]));
    bytes.extend(request(&[b"FCALL", b"nosuch", b"0"]));
    bytes.extend(request(&[b"EVAL", incr.as_bytes(), b"1", b"n"]));
    client.send(bytes).await;
    client.expect(NOSCRIPT).await;
    client.expect(bulk(GET_SHA)).await;
    client
        .expect(":1\r\n$1\r\n1\r\n:2\r\n-ERR Function not found\r\n:3\r\n")
        .await;
    server.stop().await;
}

#[tokio::test]
async fn scripts_run_inside_multi_each_as_a_command_of_it() {
    let server = Server::start().await;
    let mut client = server.client().await;
    call(&mut client, &["SCRIPT", "LOAD", GET], &bulk(GET_SHA)).await;
    // Another door over the same store knows it only after a look.
    call(&mut client, &["MULTI"], "+OK\r\n").await;
    for args in [
        vec!["SET", "k", "v"],
        vec!["EVALSHA", GET_SHA, "1", "k"],
        vec!["EVAL", "return redis.call('append',KEYS[1],'w')", "1", "k"],
        vec!["EVALSHA", "ffffffffffffffffffffffffffffffffffffffff", "0"],
        vec!["EVAL", "error('x',0)", "0"],
        vec!["GET", "k"],
    ] {
        call(&mut client, &args, "+QUEUED\r\n").await;
    }
    client.send("EXEC\r\n").await;
    client.expect("*6\r\n+OK\r\n$1\r\nv\r\n:2\r\n").await;
    client.expect(NOSCRIPT).await;
    let error = client.line().await;
    assert!(error.starts_with("-ERR x script: "), "{error}");
    client.expect("$2\r\nvw\r\n").await;
    server.stop().await;
}

const LIBRARY: &str = "#!lua name=mylib\n\
    local call = redis.call\n\
    local function bump(keys, args) return call('incrby', keys[1], args[1]) end\n\
    redis.register_function('bump', bump)\n\
    redis.register_function{function_name='peek', callback=function(keys) return call('get', keys[1]) end, flags={'no-writes'}, description='looks'}\n";

#[tokio::test]
async fn functions_are_kept_called_listed_moved_and_deleted() {
    let server = Server::start().await;
    let mut client = server.client().await;
    call(
        &mut client,
        &["FUNCTION", "LOAD", LIBRARY],
        "$5\r\nmylib\r\n",
    )
    .await;
    call(
        &mut client,
        &["FUNCTION", "LOAD", LIBRARY],
        "-ERR Library 'mylib' already exists\r\n",
    )
    .await;
    call(
        &mut client,
        &["FUNCTION", "LOAD", "REPLACE", LIBRARY],
        "$5\r\nmylib\r\n",
    )
    .await;
    call(&mut client, &["FCALL", "bump", "1", "n", "5"], ":5\r\n").await;
    call(&mut client, &["FCALL_RO", "peek", "1", "n"], "$1\r\n5\r\n").await;
    call(
        &mut client,
        &["FCALL_RO", "bump", "1", "n", "1"],
        "-ERR Can not execute a script with write flag using *_ro command.\r\n",
    )
    .await;
    call(&mut client, &["FLUSHALL"], "+OK\r\n").await;
    call(&mut client, &["MULTI"], "+OK\r\n").await;
    call(
        &mut client,
        &["FCALL", "bump", "1", "n", "2"],
        "+QUEUED\r\n",
    )
    .await;
    call(&mut client, &["EXEC"], "*1\r\n:2\r\n").await;
    call(
        &mut client,
        &["FUNCTION", "STATS"],
        "*4\r\n$14\r\nrunning_script\r\n$-1\r\n$7\r\nengines\r\n*2\r\n$3\r\nLUA\r\n*4\r\n\
         $15\r\nlibraries_count\r\n:1\r\n$15\r\nfunctions_count\r\n:2\r\n",
    )
    .await;
    let listed = "*1\r\n*6\r\n$12\r\nlibrary_name\r\n$5\r\nmylib\r\n$6\r\nengine\r\n$3\r\nLUA\r\n\
         $9\r\nfunctions\r\n*2\r\n\
         *6\r\n$4\r\nname\r\n$4\r\nbump\r\n$11\r\ndescription\r\n$-1\r\n$5\r\nflags\r\n*0\r\n\
         *6\r\n$4\r\nname\r\n$4\r\npeek\r\n$11\r\ndescription\r\n$5\r\nlooks\r\n$5\r\nflags\r\n*1\r\n$9\r\nno-writes\r\n";
    call(&mut client, &["FUNCTION", "LIST"], listed).await;
    call(
        &mut client,
        &["FUNCTION", "LIST", "LIBRARYNAME", "other*"],
        "*0\r\n",
    )
    .await;

    client.send("FUNCTION DUMP\r\n").await;
    let head = client.line().await;
    let mut payload = vec![0; head[1..].parse::<usize>().unwrap() + 2];
    tokio::io::AsyncReadExt::read_exact(&mut client.stream, &mut payload)
        .await
        .unwrap();
    payload.truncate(payload.len() - 2);
    call(&mut client, &["FUNCTION", "DELETE", "mylib"], "+OK\r\n").await;
    call(
        &mut client,
        &["FUNCTION", "DELETE", "mylib"],
        "-ERR Library not found\r\n",
    )
    .await;
    call(
        &mut client,
        &["FCALL", "bump", "1", "n", "2"],
        "-ERR Function not found\r\n",
    )
    .await;
    client
        .send(request(&[b"FUNCTION", b"RESTORE", &payload]))
        .await;
    client.expect("+OK\r\n").await;
    call(&mut client, &["FUNCTION", "LIST"], listed).await;
    client
        .send(request(&[b"FUNCTION", b"RESTORE", &payload]))
        .await;
    client
        .expect("-ERR Library 'mylib' already exists\r\n")
        .await;
    client
        .send(request(&[b"FUNCTION", b"RESTORE", &payload, b"FLUSH"]))
        .await;
    client.expect("+OK\r\n").await;
    call(&mut client, &["FUNCTION", "FLUSH"], "+OK\r\n").await;
    call(&mut client, &["FUNCTION", "LIST"], "*0\r\n").await;
    server.stop().await;
}

#[tokio::test]
async fn a_library_that_is_wrong_is_refused_as_a_whole() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for (code, error) in [
        ("return 1", "ERR Missing library metadata"),
        ("#!lua name=x", "ERR Invalid library metadata"),
        ("#!lua\nreturn 1", "ERR Library name was not given"),
        ("#!js name=x\nreturn 1", "ERR Engine 'js' not found"),
        (
            "#!lua name=a-b\nreturn 1",
            "ERR Library names can only contain letters, numbers, or underscores(_) and must be at least one character long",
        ),
        ("#!lua name=x\nreturn 1", "ERR No functions registered"),
        (
            "#!lua name=x\nredis.call('set','a',1)",
            "ERR Error registering functions: redis.call/pcall can only be called inside a script invocation",
        ),
        (
            "#!lua name=x\nredis.register_function('f',function() end)\nerror('late',0)",
            "ERR Error registering functions: late",
        ),
        (
            "#!lua name=x\nredis.register_function('f',1)",
            "ERR Error registering functions: second argument to redis.register_function must be a function",
        ),
        (
            "#!lua name=x\nredis.register_function('f',function() end)\nredis.register_function('f',function() end)",
            "ERR Error registering functions: Function already exists in the library",
        ),
        (
            "#!lua name=x\n(",
            "ERR Error compiling function: user_function:2: unexpected symbol near '<eof>'",
        ),
    ] {
        call(
            &mut client,
            &["FUNCTION", "LOAD", code],
            &format!("-{error}\r\n"),
        )
        .await;
    }
    call(&mut client, &["FUNCTION", "LIST"], "*0\r\n").await;
    server.stop().await;
}
