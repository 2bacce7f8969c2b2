-- Shared by the scripts of the Redis store; keys.rs documents the layout.
local call, try = redis.call, redis.pcall
local byte, sub = string.byte, string.sub

-- A record of up to 256 bytes is kept in pieces of 64, the longest value that leaves a small hash compact.
local PIECE, LONGEST_IN_PIECES = 64, 256

-- Up to so many activities are found fast enough without an order; from then on the timeline keeps one.
local SMALL = 128

-- The record of an activity, '' if there is none.
local function load(history, id)
  local record = call('HGET', history, '0' .. id) or ''
  if #record ~= PIECE then return record end
  for n = 1, LONGEST_IN_PIECES / PIECE - 1 do
    local piece = call('HGET', history, n .. id)
    if not piece then break end
    record = record .. piece
    if #piece ~= PIECE then break end
  end
  return record
end

-- How many activities a lead has: `n`, up to a blank.
local function count_of(n)
  return tonumber(n and string.match(n, '^%d+') or 0)
end

-- Big-endian numbers at the start of every record: version in bytes 1-6, time (of activities) in bytes 7-13.
local function version_of(record)
  local a, b, c, d, e, f = byte(record, 1, 6)
  return ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
end

local function time_of(record)
  local a, b, c, d, e, f, g = byte(record, 7, 13)
  return (((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f) * 256 + g
end

-- Lua compares strings by the locale; this is by bytes.
local function less(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = byte(a, i), byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end

-- How many members of a sorted set stand before (time, member), greatest first.
local function rank_behind(set, time, member)
  local greater = call('ZCOUNT', set, '(' .. time, '+inf')
  local low, high = 0, call('ZCOUNT', set, time, time)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local at = call('ZREVRANGE', set, greater + middle, greater + middle)[1]
    if less(at, member) then high = middle else low = middle + 1 end
  end
  return greater + low
end

-- The commands that the scripts use.
local READS = {'HGET', 'HMGET', 'HGETALL', 'ZCOUNT', 'ZREVRANGE'}
local WRITES = {'HSET', 'HSETNX', 'HDEL', 'ZADD', 'ZREM', 'ZPOPMIN', 'XADD', 'UNLINK', 'EXPIRE', 'TIME'}

-- The error that a missing right would cause, before anything is written: a script that fails midway is not undone.
local function missing_right(key, ...)
  for _, commands in ipairs({...}) do
    for _, command in ipairs(commands) do
      local allowed
      if command == 'TIME' then allowed = redis.acl_check_cmd(command) else allowed = redis.acl_check_cmd(command, key) end
      if not allowed then return redis.error_reply('NOPERM ' .. command) end
    end
  end
end
