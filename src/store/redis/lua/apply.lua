-- Applies changes: each wholly or not at all, whatever becomes of the others of the batch.
-- KEYS: six for each change: lead, history, timeline, details, workspace index, feed.
-- ARGV: history cap, feed length; then for each change what change_args in apply.rs writes.
-- Replies, one for each change:
--   {A, version} applied    {U, version} nothing new     {D} deleted    {W} other workspace    {O} too old
--   {S, version, workspace, first, old activity, old details...} not what was expected: nothing was written
--   {E, message} a key of the wrong type: nothing was written
local A, K = ARGV, KEYS
local cap, feed_length = tonumber(A[1]), A[2]

local function stamp(version)
  local number, bytes = tonumber(version), {}
  for i = 6, 1, -1 do
    bytes[i] = number % 256
    number = math.floor(number / 256)
  end
  return string.char(unpack(bytes))
end

-- An id as text; UUIDs are packed into 16 bytes.
local function text(id)
  if #id == 16 then
    local hex = string.gsub(id, '.', function(c) return string.format('%02x', byte(c)) end)
    return table.concat({sub(hex, 1, 8), sub(hex, 9, 12), sub(hex, 13, 16), sub(hex, 17, 20), sub(hex, 21)}, '-')
  end
  return byte(id, -1) == 255 and sub(id, 1, -2) or id
end

local function pieces(id, record)
  if #record > LONGEST_IN_PIECES then return {'0' .. id, record} end
  local fields = {}
  for n = 0, math.ceil(#record / PIECE) - 1 do
    fields[#fields + 1] = n .. id
    fields[#fields + 1] = sub(record, n * PIECE + 1, (n + 1) * PIECE)
  end
  return fields
end

local function forget(history, id)
  call('HDEL', history, '0' .. id, '1' .. id, '2' .. id, '3' .. id)
end

local function order(history, timeline, count, id, time)
  if count > SMALL + 1 then return try('ZADD', timeline, time, id) end
  local all, scores = call('HGETALL', history), {}
  for i = 1, #all, 2 do
    if sub(all[i], 1, 1) == '0' then
      scores[#scores + 1] = string.format('%.0f', time_of(all[i + 1]))
      scores[#scores + 1] = sub(all[i], 2)
    end
  end
  return try('ZADD', timeline, unpack(scores))
end

-- Drops the oldest activities; their times are remembered as the floor, for they cannot be told from new ones.
local function trim(history, timeline, count)
  local oldest = call('ZPOPMIN', timeline, count)
  for i = 1, #oldest, 2 do forget(history, oldest[i]) end
  return oldest[#oldest], #oldest / 2
end

-- Where the arguments of the change at `a` part, and end.
local function parts(a)
  local count_end = a + 8 + 2 * tonumber(A[a + 7])
  local time_end = count_end + 1 + 2 * tonumber(A[count_end])
  local add_end = time_end + 1 + 3 * tonumber(A[time_end])
  return count_end, time_end, add_end, A[add_end] == '' and add_end + 1 or add_end + 4
end

local function apply(k, a, count_end, time_end, add_end)
  local lead, history, timeline, details = K[k + 1], K[k + 2], K[k + 3], K[k + 4]
  local index, feed = K[k + 5], K[k + 6]
  local now, lead_id, workspace = A[a], A[a + 1], A[a + 2]
  local id, record, time, expected = A[a + 3], A[a + 4], A[a + 5], A[a + 6]
  local counts, times, adds, absolute = a + 8, count_end + 1, time_end + 1, A[add_end]

  local ask = {'v', 'w', 'x', 'l', 'i', 'f', 'n', 't'}
  for i = counts, count_end - 1, 2 do ask[#ask + 1] = A[i] end
  for i = times, time_end - 1, 2 do ask[#ask + 1] = A[i] end
  local head = try('HMGET', lead, unpack(ask))
  if head.err then return {'E', head.err} end
  local previous, known, latest, latest_id, first = head[1], head[2], head[4], head[5], head[6]
  if head[3] then return {'D'} end
  if known and workspace ~= '' and known ~= workspace then return {'W'} end

  local function seen()
    local reply = {'S', previous or '0', known or '', first or '', id ~= '' and load(history, id) or ''}
    for i = adds, add_end - 1, 3 do reply[#reply + 1] = call('HGET', details, A[i]) or '' end
    return reply
  end
  if absolute ~= '' and absolute ~= previous then return seen() end

  local learns = workspace ~= '' and not known
  if id == '' and adds == add_end and previous and not learns then return {'U', previous} end
  local floor = head[8]
  if id ~= '' and expected == '' and floor and tonumber(time) <= tonumber(floor) then
    if call('HEXISTS', history, '0' .. id) == 0 then return {'O'} end
    return seen()
  end

  local version = now
  if previous and tonumber(previous) >= tonumber(now) then
    version = string.format('%.0f', previous + 1)
    local stamped = stamp(version)
    if id ~= '' then record = stamped .. sub(record, 7) end
    for i = adds + 2, add_end - 1, 3 do A[i] = stamped .. sub(A[i], 7) end
  end

  -- Everything that can fail or disagree comes before the lead's own hash, and is taken back if it does.
  local wrote_history, wrote_details, wrote_index
  local function undo()
    if wrote_history then
      forget(history, id)
      if expected ~= '' then call('HSET', history, unpack(pieces(id, expected))) end
    end
    if wrote_details then
      for i = adds, add_end - 1, 3 do
        if A[i + 1] == '' then call('HDEL', details, A[i]) else call('HSET', details, A[i], A[i + 1]) end
      end
    end
    if wrote_index then
      if previous and not learns then call('ZADD', index, latest or 0, lead_id) else call('ZREM', index, lead_id) end
    end
  end
  local function fail(reply)
    undo()
    return {'E', reply.err}
  end

  if id ~= '' then
    if expected == '' then
      local fields = pieces(id, record)
      local set = try('HSETNX', history, fields[1], fields[2])
      if set == 0 then return seen() end
      if type(set) == 'table' then return fail(set) end
      if #fields > 2 then call('HSET', history, unpack(fields, 3)) end
    else
      if load(history, id) ~= expected then return seen() end
      forget(history, id)
      call('HSET', history, unpack(pieces(id, record)))
    end
    wrote_history = true
  end
  if adds + 3 == add_end and A[adds + 1] == '' then
    local set = try('HSETNX', details, A[adds], A[adds + 2])
    if type(set) == 'table' then return fail(set) end
    if set == 0 then
      undo()
      wrote_history = false
      return seen()
    end
    wrote_details = true
  elseif adds < add_end then
    local fields, values = {}, {}
    for i = adds, add_end - 1, 3 do
      fields[#fields + 1] = A[i]
      values[#values + 1] = A[i]
      values[#values + 1] = A[i + 2]
    end
    local present = try('HMGET', details, unpack(fields))
    if present.err then return fail(present) end
    for i = 1, #fields do
      if (present[i] or '') ~= A[adds + 3 * i - 2] then
        undo()
        return seen()
      end
    end
    call('HSET', details, unpack(values))
    wrote_details = true
  end

  local set, gone = {'v', version}, {}
  local function put(field, value)
    set[#set + 1] = field
    set[#set + 1] = value
  end
  local moved = false
  if absolute ~= '' then
    moved = A[add_end + 2] ~= latest
    latest = A[add_end + 2]
    put('f', A[add_end + 1])
    put('l', latest)
    put('i', A[add_end + 3])
    put('o', version)
  elseif id ~= '' then
    local at, then_at = tonumber(time), tonumber(latest or -1)
    if at > then_at or at == then_at and (latest_id == id or less(text(latest_id), text(id))) then
      moved = latest ~= time
      latest = time
      put('l', time)
      put('i', id)
    else
      put('o', version)
    end
    if not first or at < tonumber(first) then put('f', time) end
  end
  if workspace ~= '' and (moved or learns) then
    local added = try('ZADD', index, latest or 0, lead_id)
    if type(added) == 'table' then return fail(added) end
    wrote_index = true
  end
  local told = try('XADD', feed, 'MAXLEN', '~', feed_length, '*', 'l', lead_id, 'w', known or workspace, 'v', version,
    'p', previous or '0')
  if type(told) == 'table' then return fail(told) end

  if learns then put('w', workspace) end
  if id ~= '' then
    local count = tonumber(head[7] or 0)
    if expected == '' then
      count = count + 1
      if count > SMALL then order(history, timeline, count, id, time) end
      if count > cap + math.max(1, math.min(64, cap / 8)) then
        local trimmed, dropped = trim(history, timeline, count - cap)
        count = count - dropped
        if trimmed then put('t', trimmed) end
      end
      put('n', count)
    elseif count > SMALL then
      try('ZADD', timeline, time, id)
    end
  end
  local at = 9
  for i = counts, count_end - 1, 2 do
    local value = tonumber(head[at] or 0) + tonumber(A[i + 1])
    if value == 0 then
      gone[#gone + 1] = A[i]
      if byte(A[i]) == 109 then gone[#gone + 1] = 't' .. sub(A[i], 2) end -- m|…: its time goes with it
    else
      put(A[i], value)
    end
    at = at + 1
  end
  for i = times, time_end - 1, 2 do
    local value = A[i + 1]
    if absolute ~= '' or tonumber(head[at] or -1) < tonumber(value) then put(A[i], value) end
    at = at + 1
  end
  call('HSET', lead, unpack(set))
  if #gone > 0 then call('HDEL', lead, unpack(gone)) end
  return {'A', version}
end

local replies, a = {}, 3
for change = 1, #K / 6 do
  local count_end, time_end, add_end, following = parts(a)
  local ok, reply = pcall(apply, (change - 1) * 6, a, count_end, time_end, add_end)
  replies[change] = ok and reply or {'E', type(reply) == 'table' and reply.err or tostring(reply)}
  a = following
end
return replies
