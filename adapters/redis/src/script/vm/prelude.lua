-- Runs once in each new VM, before any script: turns what Lua and this crate's natives offer into
-- what a script may see, and gives back the functions through which scripts are run.
--
-- Lua 5.1 has no read-only tables. What scripts share is therefore a *view*: an empty table that
-- reads through to the real one, which no script can reach, and refuses writes. The table of globals
-- itself is made such a view, so whatever is compiled later (also by loadstring) sees only that.
--
-- What a native raises is an object of Rust; whoever catches it here gets the text, or the table,
-- that it stands for.

local native = ...

local error, type, tostring, tonumber = error, type, tostring, tonumber
local next, pairs, unpack, setmetatable = next, pairs, unpack, setmetatable
local raw_get, raw_set, raw_pcall, raw_xpcall, raw_loadstring = rawget, rawset, pcall, xpcall, loadstring
local byte, concat, sub, raw_gsub, raw_find = string.byte, table.concat, string.sub, string.gsub, string.find
local read_only = 'Attempt to modify a readonly table'

-- The real table behind each view.
local views = {}
local view_list = {}

local function refuse()
  error(read_only, 2)
end

local function view_of(real, view, missing)
  view = view or {}
  if missing then
    setmetatable(real, { __index = missing })
  end
  setmetatable(view, { __index = real, __newindex = refuse, __metatable = false })
  views[view] = real
  view_list[#view_list + 1] = view
  return view
end

local function library(real, prefix, names)
  for _, name in pairs(names) do real[name] = native[prefix .. name] end
  return real
end

local redis = library({
  LOG_DEBUG = 0, LOG_VERBOSE = 1, LOG_NOTICE = 2, LOG_WARNING = 3,
  REPL_NONE = 0, REPL_AOF = 1, REPL_SLAVE = 2, REPL_REPLICA = 2, REPL_ALL = 3,
  REDIS_VERSION = native.version, REDIS_VERSION_NUM = native.version_number,
}, 'redis.', {
  'call', 'pcall', 'status_reply', 'error_reply', 'log', 'sha1hex', 'setresp', 'set_repl',
  'replicate_commands', 'acl_check_cmd',
})
function redis.breakpoint() return false end
function redis.debug() end
local in_function = false

-- What changes in Lua's own libraries.
local globals = {}
local kept = {
  'assert', 'collectgarbage', 'error', 'gcinfo', 'getmetatable', 'ipairs', 'next',
  'rawequal', 'select', 'setmetatable', 'tonumber', 'tostring', 'type', '_VERSION',
}
for _, name in pairs(kept) do globals[name] = _G[name] end

local problem_of = native.problem
local function plain(ok, problem, ...)
  if not ok and type(problem) == 'userdata' then problem = problem_of(problem) end
  return ok, problem, ...
end

-- As Redis' own: an error that is a table with `err` comes out as that text.
local function caught(ok, problem, ...)
  if ok then return ok, problem, ... end
  if type(problem) == 'userdata' then problem = problem_of(problem) end
  if type(problem) == 'table' then
    local text = raw_get(problem, 'err')
    if type(text) == 'string' or type(text) == 'number' then return false, text end
  end
  return ok, problem, ...
end
function globals.pcall(...) return caught(raw_pcall(...)) end

-- Lua runs an error handler where the error was raised, with hooks off if a hook raised it: there it
-- could loop for ever. Here it runs after the fact, which no script can tell.
local function handled(handler, ok, ...)
  if ok then return ok, ... end
  local _, result = raw_pcall(handler, ...)
  return false, result
end
function globals.xpcall(f, handler) return handled(handler, plain(raw_pcall(f))) end

local raw_resume = coroutine.resume
function coroutine.resume(...) return plain(raw_resume(...)) end

-- Text only: byte code can crash the VM.
local function load_text(text, name)
  if type(text) == 'number' then text = tostring(text) end
  if type(text) == 'string' and byte(text, 1) == 27 then
    return nil, 'attempt to load chunk with wrong mode'
  end
  return raw_loadstring(text, name)
end
globals.loadstring = load_text
function globals.load(reader, name)
  local pieces = {}
  while true do
    local piece = reader()
    if piece == nil or piece == '' then break end
    if type(piece) ~= 'string' then return nil, 'reader function must return a string' end
    pieces[#pieces + 1] = piece
  end
  return load_text(concat(pieces), name or '=(load)')
end

function globals.rawget(t, k)
  return raw_get(views[t] or t, k)
end
function globals.rawset(t, k, v)
  if views[t] then error(read_only, 0) end
  return raw_set(t, k, v)
end
function globals.pairs(t)
  local real = views[t]
  if not real then return pairs(t) end
  return function(_, k) return next(real, k) end, t, nil
end

local math_real = math
math_real.random = native.random
math_real.randomseed = native.randomseed

-- A loop in C that no hook can end.
local raw_rep = string.rep
function string.rep(s, n)
  if s == '' then return s end
  return raw_rep(s, n)
end

-- A difference beyond 31 bits makes the one in C write past its stack.
function globals.unpack(t, i, j)
  if i ~= nil or j ~= nil then
    local first, last = tonumber(i or 1), tonumber(j or (type(t) == 'table' and #t or 0))
    if first and last and last - first >= 1000000 then error('too many results to unpack', 2) end
  end
  return unpack(t, i, j)
end

-- Patterns are matched by a native that keeps to a depth and looks at the clock: the one in C can
-- take for ever, or all of its stack.
string.find, string.match, string.gmatch = native['string.find'], native['string.match'], native['string.gmatch']
string.gfind = string.gmatch
local match_at = native['string.match_at']

local function text(value, position, name)
  local kind = type(value)
  if kind == 'string' then return value end
  if kind == 'number' then return tostring(value) end
  if value == nil then kind = 'no value' end
  error('bad argument #' .. position .. " to '" .. name .. "' (string expected, got " .. kind .. ')', 3)
end

local function expanded(repl, whole, captures, count)
  return (raw_gsub(repl, '%%(.)', function(digit)
    local n = byte(digit) - 48
    if n < 0 or n > 9 then return digit end
    if n == 0 then return whole end
    if n == 1 and count == 0 then return whole end
    if n > count then error('invalid capture index', 5) end
    return captures[n]
  end))
end

function string.gsub(s, p, repl, most)
  s, p = text(s, 1, 'gsub'), text(p, 2, 'gsub')
  local kind = type(repl)
  if kind == 'number' then
    repl, kind = tostring(repl), 'string'
  elseif kind ~= 'string' and kind ~= 'function' and kind ~= 'table' then
    error("bad argument #3 to 'gsub' (string/function/table expected)", 2)
  end
  local special = kind == 'string' and raw_find(repl, '%', 1, true)
  local anchored = byte(p, 1) == 94
  local out, size, at, done = {}, 0, 1, 0
  most = most or #s + 1
  while done < most do
    local first, last, captures, count = match_at(s, p, at)
    if not first then break end
    done = done + 1
    if first > at then
      size = size + 1
      out[size] = sub(s, at, first - 1)
    end
    local whole = sub(s, first, last)
    local value
    if kind == 'string' then
      value = special and expanded(repl, whole, captures, count) or repl
    else
      local key = whole
      if count > 0 then key = captures[1] end
      if kind == 'table' then
        value = repl[key]
      elseif count > 0 then
        value = repl(unpack(captures, 1, count))
      else
        value = repl(whole)
      end
      if not value then
        value = whole
      elseif type(value) ~= 'string' and type(value) ~= 'number' then
        error('invalid replacement value (a ' .. type(value) .. ')', 2)
      end
    end
    size = size + 1
    out[size] = value
    at = last + 1
    if last < first then
      -- An empty match: the character after it is kept.
      if first <= #s then
        size = size + 1
        out[size] = sub(s, first, first)
      end
      at = first + 1
    end
    if at > #s + 1 or anchored then break end
  end
  if at <= #s then
    size = size + 1
    out[size] = sub(s, at)
  end
  return concat(out, '', 1, size), done
end

globals.string = view_of(string)
globals.table = view_of(table)
globals.math = view_of(math_real)
globals.coroutine = view_of(coroutine)
globals.os = view_of({ clock = os.clock })
globals.redis = view_of(redis)
globals.bit = view_of(library({}, 'bit.', {
  'tobit', 'bnot', 'band', 'bor', 'bxor', 'lshift', 'rshift', 'arshift', 'rol', 'ror', 'bswap', 'tohex',
}))
globals.struct = view_of(library({}, 'struct.', { 'pack', 'size', 'unpack' }))
globals.cmsgpack = view_of(library({
  _NAME = 'cmsgpack', _VERSION = 'lua-cmsgpack 0.4.0',
  _COPYRIGHT = 'Copyright (C) 2012, Salvatore Sanfilippo',
  _DESCRIPTION = 'MessagePack C implementation for Lua',
}, 'cmsgpack.', { 'pack', 'unpack', 'unpack_one', 'unpack_limit' }))
local function cjson()
  return library({ _NAME = 'cjson', _VERSION = '2.1.0', null = native.null }, 'cjson.', {
    'encode', 'decode', 'encode_max_depth', 'decode_max_depth', 'encode_number_precision',
    'encode_keep_buffer', 'encode_invalid_numbers', 'decode_invalid_numbers', 'encode_sparse_array',
  })
end
local cjson_real = cjson()
cjson_real.new = cjson
globals.cjson = view_of(cjson_real)

getmetatable('').__index = globals.string
getmetatable('').__metatable = view_of({ __index = globals.string })

-- From here on, the table of globals is a view too.
local G = _G
for name in pairs(G) do G[name] = nil end
globals._G = G
view_of(globals, G, function(_, name)
  error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
end)

-- What a script wrote into a view behind our back (table.insert does) goes with it.
local function tidy()
  for at = 1, #view_list do
    local view = view_list[at]
    local key = next(view)
    while key ~= nil do
      raw_set(view, key, nil)
      key = next(view)
    end
  end
end

local function set_up(functions)
  if functions ~= in_function then
    in_function = functions
    redis.register_function = functions and native['redis.register_function'] or nil
  end
end

local entry = {}

function entry.script(script, keys, argv)
  set_up(false)
  globals.KEYS, globals.ARGV = keys, argv
  local ok, result = raw_xpcall(script, native.located)
  tidy()
  return ok, result
end

entry['function'] = function(f, keys, argv)
  set_up(true)
  globals.KEYS, globals.ARGV = nil, nil
  local ok, result = raw_xpcall(function() return f(keys, argv) end, native.located)
  tidy()
  return ok, result
end

function entry.load(chunk)
  set_up(true)
  globals.KEYS, globals.ARGV = nil, nil
  local ok, result = raw_xpcall(chunk, native.located)
  tidy()
  return ok, result
end

return entry
